"""The tables of the shop and what stands in them on the first day."""

from typing import Final

# Big enough that a search without its index really has to work, small enough to be made in a second.
REVIEWS = 150_000
OLD_ORDERS = 150_000
PRODUCTS = 2_000

TABLES: Final = (
    # Folds case, blanks and accents the way the search box does.
    """CREATE FUNCTION folded(text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$
    BEGIN RETURN regexp_replace(translate(lower(btrim($1)), 'áéíóúñü-_', 'aeiounu  '), '[[:space:]]+', ' ', 'g'); END $$""",
    """CREATE TABLE products (id int PRIMARY KEY, title text NOT NULL, price_cents int NOT NULL, packs int NOT NULL)""",
    f"""INSERT INTO products SELECT n, 'Product ' || n || ' ' || substr(md5(n::text), 1, 8), 199 + (n * 7919) % 9800, n % 3
    FROM generate_series(1, {PRODUCTS}) AS n""",
    """CREATE TABLE reviews (id int PRIMARY KEY, product_id int NOT NULL, stars int NOT NULL, body text NOT NULL)""",
    f"""INSERT INTO reviews SELECT n, 1 + n % {PRODUCTS}, 1 + n % 5, 'Review ' || n % 12000 FROM generate_series(1, {REVIEWS}) AS n""",
    "CREATE INDEX reviews_folded ON reviews (folded(body))",
    """CREATE TABLE carts (customer text, product_id int, quantity int NOT NULL, price_cents int NOT NULL,
    PRIMARY KEY (customer, product_id))""",
    """CREATE TABLE orders (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, customer text NOT NULL,
    total_cents int NOT NULL, points int NOT NULL, placed_at timestamptz NOT NULL DEFAULT now())""",
    f"""INSERT INTO orders (customer, total_cents, points) SELECT 'user-' || n % 15000, 500 + n % 9000, n % 90
    FROM generate_series(1, {OLD_ORDERS}) AS n""",
    # With the id, so that the newest come first: the planner then prefers it even without statistics of the expression.
    "CREATE INDEX orders_folded ON orders (folded(customer), id)",
    """CREATE TABLE payments (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, customer text NOT NULL, cents int NOT NULL,
    fee_cents int NOT NULL, risk int NOT NULL, at timestamptz NOT NULL DEFAULT now())""",
    "CREATE INDEX payments_customer ON payments (customer)",
    "CREATE TABLE stock (product_id int PRIMARY KEY, quantity int NOT NULL) WITH (fillfactor = 70)",
    f"INSERT INTO stock SELECT n, 1000 FROM generate_series(1, {PRODUCTS}) AS n",
    """CREATE TABLE shipments (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, order_id int NOT NULL, address text NOT NULL,
    trace text NOT NULL, sent_at timestamptz NOT NULL DEFAULT now())""",
    "CREATE TABLE bookings (order_id int NOT NULL, label text NOT NULL)",
    "CREATE TABLE rules (service text, name text, value text NOT NULL, PRIMARY KEY (service, name))",
    """INSERT INTO rules VALUES ('catalog', 'margin_percent', '12'), ('cart', 'quantity_max', '50'),
    ('orders', 'minimum_cents', '499'), ('payments', 'charge_max_cents', '9000000'), ('inventory', 'bin_size', '6'),
    ('shipping', 'parcel_kg_max', '30')""",
)
"""Statements in order, each run on its own."""

"""A little shop to break: services, load, faults and releases. The product never imports it."""

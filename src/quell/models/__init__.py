"""Ask a model, whoever runs it, and stream what it answers.

Owns:  the protocols of providers, what their refusals mean, the count of tokens, calls in text and calls in schemas.
Never: runs a tool, decides anything, keeps a conversation, tries twice by itself.
"""

from quell.models._bills import Bill as Bill
from quell.models._bills import bills_of as bills_of
from quell.models._embed import open_embedder as open_embedder
from quell.models._limits import Limits as Limits
from quell.models._model import Gathering as Gathering
from quell.models._model import Model as Model
from quell.models._model import ask as ask
from quell.models._open import list_models as list_models
from quell.models._open import open_model as open_model
from quell.models._scripted import ScriptedModel as ScriptedModel
from quell.models._tokens import TokenCounter as TokenCounter
from quell.models._ways import ChainModel as ChainModel

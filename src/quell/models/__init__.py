"""Ask a model, whoever runs it, and stream what it answers.

Owns:  the protocols of providers, what their refusals mean, the count of tokens, calls in text and calls in schemas.
Never: runs a tool, decides anything, keeps a conversation, tries twice by itself.
"""

from quell.models._builtin import BuiltinModel as BuiltinModel
from quell.models._model import Gathering as Gathering
from quell.models._model import Model as Model
from quell.models._model import ask as ask
from quell.models._openai import Endpoint as Endpoint
from quell.models._openai import OpenAIModel as OpenAIModel
from quell.models._openai import Patience as Patience
from quell.models._scripted import ScriptedModel as ScriptedModel
from quell.models._tokens import TokenCounter as TokenCounter
from quell.models._ways import ChainModel as ChainModel
from quell.models._ways import SchemaCallModel as SchemaCallModel
from quell.models._ways import TextCallModel as TextCallModel

"""The mind: ask a model, call tools, and answer with evidence, within bounds, as a durable run.

Owns:  the loop, its bounds, what stands in a model's context, and what an answer may claim.
Never: touches the world but through the toolbox, speaks a provider's protocol, opens a socket.
"""

from quell.agent._accounts import BudgetAccounts as BudgetAccounts
from quell.agent._agent import Agent as Agent
from quell.agent._asking import Accounts as Accounts
from quell.agent._crew import Crew as Crew
from quell.agent._live import Live as Live
from quell.agent._live import Moved as Moved
from quell.agent._live import Piece as Piece
from quell.agent._means import WorkerSpec as WorkerSpec
from quell.agent._talk import AgentAnswer as AgentAnswer
from quell.agent._talk import Role as Role
from quell.agent._talk import Stop as Stop
from quell.agent._talk import Talk as Talk

"""Read a `quell.toml` into frozen Settings.

Owns:  TOML, environment references, layering, secrets, the error report, versions by content hash.
Never: keeps a file open, reads the environment it was not handed, prints a secret.
"""

from quell.config._agent_settings import AgentMcpServer as AgentMcpServer
from quell.config._agent_settings import AgentSettings as AgentSettings
from quell.config._agent_settings import AgentTable as AgentTable
from quell.config._agent_settings import ArtifactSettings as ArtifactSettings
from quell.config._agent_settings import EmbeddingSettings as EmbeddingSettings
from quell.config._agent_settings import GitSkills as GitSkills
from quell.config._agent_settings import LlmSettings as LlmSettings
from quell.config._agent_settings import OrchestrationSettings as OrchestrationSettings
from quell.config._agent_settings import ScratchpadSettings as ScratchpadSettings
from quell.config._agent_settings import SkillSettings as SkillSettings
from quell.config._agent_settings import TimeoutSettings as TimeoutSettings
from quell.config._agent_settings import VectorStoreSettings as VectorStoreSettings
from quell.config._agent_settings import WorkerSettings as WorkerSettings
from quell.config._agent_versions import agent_kept as agent_kept
from quell.config._agent_versions import kept_agent as kept_agent
from quell.config._agents import AgentFiles as AgentFiles
from quell.config._agents import load_agents as load_agents
from quell.config._explain import Explanation as Explanation
from quell.config._explain import explain as explain
from quell.config._explain import explain_all as explain_all
from quell.config._explain import schema as schema
from quell.config._explain import version_of as version_of
from quell.config._load import Loaded as Loaded
from quell.config._load import load as load
from quell.config._settings import ApprovalSettings as ApprovalSettings
from quell.config._settings import AuraSettings as AuraSettings
from quell.config._settings import BudgetSettings as BudgetSettings
from quell.config._settings import CapSettings as CapSettings
from quell.config._settings import DetectionSettings as DetectionSettings
from quell.config._settings import GovernanceSettings as GovernanceSettings
from quell.config._settings import IdentitySettings as IdentitySettings
from quell.config._settings import InvestigationSettings as InvestigationSettings
from quell.config._settings import JournalSettings as JournalSettings
from quell.config._settings import McpServerSettings as McpServerSettings
from quell.config._settings import McpSettings as McpSettings
from quell.config._settings import OidcSettings as OidcSettings
from quell.config._settings import PrometheusSettings as PrometheusSettings
from quell.config._settings import ProxySettings as ProxySettings
from quell.config._settings import Secret as Secret
from quell.config._settings import ServerSettings as ServerSettings
from quell.config._settings import Settings as Settings
from quell.config._settings import StoreSettings as StoreSettings
from quell.config._settings import TelemetrySettings as TelemetrySettings
from quell.config._settings import ToolSettings as ToolSettings

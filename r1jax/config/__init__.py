"""Every room's configuration: frozen dataclasses, complete and JSON-able. Imports no jax."""

from r1jax.config.base import ConfigError as ConfigError
from r1jax.config.base import diff as diff
from r1jax.config.base import from_json as from_json
from r1jax.config.base import to_json as to_json
from r1jax.config.data import Source as Source
from r1jax.config.data import Text as Text
from r1jax.config.mesh import Mesh as Mesh
from r1jax.config.model import CONFIG_671B as CONFIG_671B
from r1jax.config.model import GQA as GQA
from r1jax.config.model import MLA as MLA
from r1jax.config.model import Model as Model
from r1jax.config.model import MoE as MoE
from r1jax.config.model import Rope as Rope
from r1jax.config.model import Segment as Segment
from r1jax.config.rollout import Engine as Engine
from r1jax.config.rollout import Sampling as Sampling
from r1jax.config.stages import GRPO as GRPO
from r1jax.config.stages import SAFE_TO_CHANGE as SAFE_TO_CHANGE
from r1jax.config.stages import SFT as SFT
from r1jax.config.stages import Pipeline as Pipeline
from r1jax.config.stages import Stage as Stage
from r1jax.config.train import Checkpoint as Checkpoint
from r1jax.config.train import Eval as Eval
from r1jax.config.train import Log as Log
from r1jax.config.train import Optimizer as Optimizer
from r1jax.config.train import Workers as Workers

"""All public names of clustering, imported together when the first of them is used."""

from .dec import DEC as DEC
from .dec import anchored_target as anchored_target
from .dec import divergence as divergence
from .dec import encoder as encoder
from .dec import fixed_target_loss as fixed_target_loss
from .dec import moving_target as moving_target
from .dec import pretrain as pretrain
from .dec import start_centres as start_centres
from .dec import target as target
from .explain import ClusterSettings as ClusterSettings
from .explain import Explanation as Explanation
from .explain import explain as explain
from .objectives import assignments as assignments
from .objectives import log_assignment as log_assignment
from .objectives import margin as margin
from .settle import Settled as Settled
from .settle import settled as settled

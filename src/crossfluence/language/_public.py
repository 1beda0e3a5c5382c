"""All public names of language, imported together when the first of them is used."""

from .contrastive import embeddings as embeddings
from .contrastive import in_batch_contrastive as in_batch_contrastive
from .embedding_association import Association as Association
from .embedding_association import association as association
from .losses import causal_loss as causal_loss
from .losses import classification_loss as classification_loss
from .losses import masked_loss as masked_loss
from .pairs import pair_preference as pair_preference
from .pairs import pronoun_preference as pronoun_preference
from .preference import dpo_loss as dpo_loss
from .preference import with_reference as with_reference
from .questions import Question as Question
from .questions import class_logit as class_logit
from .questions import contrast as contrast
from .questions import log_probability as log_probability
from .questions import similarity as similarity
from .readers import crows_pairs as crows_pairs
from .readers import seat as seat
from .readers import stereoset as stereoset
from .readers import winobias as winobias
from .recorder import Recorder as Recorder
from .trainer import recipe as recipe
from .trainer import risk_of as risk_of

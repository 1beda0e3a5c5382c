"""Language models: losses, questions and measures of bias for models of transformers."""

from .association import Association, association
from .contrastive import embeddings, in_batch_contrastive
from .losses import causal_loss, classification_loss, masked_loss
from .pairs import pair_preference, pronoun_preference
from .preference import dpo_loss, with_reference
from .questions import Question, class_logit, contrast, log_probability, similarity
from .readers import crows_pairs, seat, stereoset, winobias
from .recorder import Recorder
from .trainer import recipe

__all__ = [
    "Association",
    "Question",
    "Recorder",
    "association",
    "causal_loss",
    "class_logit",
    "classification_loss",
    "contrast",
    "crows_pairs",
    "dpo_loss",
    "embeddings",
    "in_batch_contrastive",
    "log_probability",
    "masked_loss",
    "pair_preference",
    "pronoun_preference",
    "recipe",
    "seat",
    "similarity",
    "stereoset",
    "winobias",
    "with_reference",
]

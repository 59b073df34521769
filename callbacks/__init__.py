"""Lightning callbacks: when teachers move and when pseudo-labels are made."""

from callbacks.ema_teacher import EMATeacher
from callbacks.future_teacher import FutureTeacher
from callbacks.pseudo_label import PseudoLabeler, TeacherPrediction
from callbacks.visualize import PredictionPanel

__all__ = ["EMATeacher", "FutureTeacher", "PredictionPanel", "PseudoLabeler", "TeacherPrediction"]

"""Lightning callbacks: when teachers move and when pseudo-labels are made."""

from callbacks.channels_last import ChannelsLast
from callbacks.checkpoint_io import AtomicCheckpointIO
from callbacks.checkpointing import GradientCheckpointing
from callbacks.collapse import CollapseMonitor, RankMe
from callbacks.compiled import Compile
from callbacks.defaults import default_monitors
from callbacks.dense_probe import DenseProbe
from callbacks.ema_teacher import EMATeacher
from callbacks.epoch_average import EpochAverage
from callbacks.exact_resume import ExactResume
from callbacks.fused_optimizer import FusedOptimizer
from callbacks.future_teacher import FutureTeacher
from callbacks.interrupts import Interrupts
from callbacks.mesa import Mesa
from callbacks.monitor import Monitor, NoMonitors
from callbacks.online_probe import OnlineLinearProbe
from callbacks.participant_probe import ParticipantProbe
from callbacks.plateau import ReduceOnPlateau
from callbacks.probes import KNNProbe, LinearProbe
from callbacks.progress import RunProgress
from callbacks.pseudo_label import PseudoLabeler, TeacherPrediction
from callbacks.pseudo_labels import PseudoLabelMonitor
from callbacks.raw_pixels import RawPixelProbe
from callbacks.run_card import RunCard
from callbacks.sample_scores import SampleScores
from callbacks.snapshot_teacher import SnapshotTeacher
from callbacks.teacher_distance import TeacherDistance
from callbacks.throughput import Throughput
from callbacks.visualize import (
    BatchPreview,
    PositionPanel,
    PredictionPanel,
    ReconstructionPanel,
    VolumePanel,
)
from callbacks.wandb_checkpoint import WandbCheckpoint
from callbacks.write_images import WriteImages
from callbacks.write_predictions import WritePredictions
from callbacks.write_volumes import WriteVolumes
from zoo.finite import NonFinite

__all__ = [
    "AtomicCheckpointIO",
    "BatchPreview",
    "ChannelsLast",
    "CollapseMonitor",
    "Compile",
    "DenseProbe",
    "EMATeacher",
    "EpochAverage",
    "ExactResume",
    "FusedOptimizer",
    "FutureTeacher",
    "GradientCheckpointing",
    "Interrupts",
    "KNNProbe",
    "LinearProbe",
    "Mesa",
    "Monitor",
    "NoMonitors",
    "NonFinite",
    "OnlineLinearProbe",
    "ParticipantProbe",
    "PositionPanel",
    "PredictionPanel",
    "PseudoLabelMonitor",
    "PseudoLabeler",
    "RankMe",
    "RawPixelProbe",
    "ReconstructionPanel",
    "ReduceOnPlateau",
    "RunCard",
    "RunProgress",
    "SampleScores",
    "SnapshotTeacher",
    "TeacherDistance",
    "TeacherPrediction",
    "Throughput",
    "VolumePanel",
    "WandbCheckpoint",
    "WriteImages",
    "WritePredictions",
    "WriteVolumes",
    "default_monitors",
]

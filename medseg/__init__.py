"""medseg: medical and biomedical image segmentation, from scans to a report. For research use."""

import os

# MONAI imports MLflow where that is installed, and MLflow would report its use over the network.
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"

__version__ = "0.1.0"

"""medseg: medical and biomedical image segmentation, from scans to a report. For research use."""

__version__ = "0.1.0"

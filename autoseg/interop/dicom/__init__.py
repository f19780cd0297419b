"""How is DICOM spoken: series in, segmentations and contours in and out."""

"""Networks as documents: the U-Net sentence, and one document for each family that is no sentence."""

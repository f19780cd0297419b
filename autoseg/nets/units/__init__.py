"""Units, the words of encoder, bottleneck and decoder; they never change the grid."""

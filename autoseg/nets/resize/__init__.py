"""Down and Up, the only words that change the grid."""

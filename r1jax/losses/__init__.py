"""Losses: functions of arrays only. Each returns a sum and leaves the division by a global denominator to its caller, so that
value and gradient do not depend on micro-batches, packing or the mesh."""

//! One reading of a path for classes, sessions and assets; request lines and hosts that have none.

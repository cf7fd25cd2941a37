//! What the app gets of a request: one length, one end, one cookie line, no field that is not its own.

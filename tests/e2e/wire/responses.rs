//! Answers arrive whole and true, whatever the app or the client does in the middle.

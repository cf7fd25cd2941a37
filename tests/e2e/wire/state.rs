//! What is kept: damage is noticed, durable means durable, and leftovers go.

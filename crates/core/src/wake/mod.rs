//! Waking, decided: which operation to make or join, and what each event does to it.

pub mod machine;

//! Inputs that once came out wrong, and what is right: `tests/wire/README.md` has the table. What each file
//! stands on is a raw recorder of bytes or a program that this project did not write.

mod connections;
mod contracts;
mod deploys;
mod paths;
mod recorder;
mod refused;
mod requests;
mod responses;
mod state;
mod tabs;

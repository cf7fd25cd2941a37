//! The command line. `run` is the edge; every other command reads files or talks to a running
//! edge's admin API.

use std::process::ExitCode;

// Idle sockets and held requests are many small, long-lived allocations: with jemalloc the memory
// of a herd returns to the system when it has gone (`scripts/bench/waiters` measures it).
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    vango_edge::cli::main()
}

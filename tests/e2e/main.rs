//! The real binary, real processes of the sample app, raw sockets and a browser: what the issue
//! asks for, seen from outside.
//!
//! Each test has an edge of its own, in a directory of its own, on ports that the kernel chose.
//! Tests wait for conditions, never for a time; [`support::eventually`] is the only place that
//! sleeps.

mod support;

mod acme;
mod adopt;
mod age;
mod asset_wire;
mod assets;
mod at_most_once;
mod beside;
mod browser;
mod check;
mod cold_start;
mod collect;
mod command;
mod crash;
mod cuts;
mod deploy;
mod env_vars;
mod evidence;
mod exec;
mod forms;
mod freeze;
mod full;
mod given;
mod grpc;
mod headers;
mod held;
mod herd;
mod http2;
mod idle;
mod keyed;
mod kills;
mod limits;
mod live;
mod logs;
mod many;
mod metrics;
mod otlp;
mod own;
mod page;
mod points;
mod preview;
mod promotion;
mod refusals;
mod release;
mod reload;
mod sites;
mod sleep;
mod smuggling;
mod stop;
mod systemd;
mod tls;
mod uploads;
mod upstreams;
mod webhook;
mod wire;

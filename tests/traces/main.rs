//! One file per trace of the seed, each reading as given / request / steps. The seed's own page is
//! `seed.txt`, unchanged; [`seed`] reads it, and each trace's steps must contain the seed's, in its
//! order and in its words.

mod asleep;
mod cold_get;
mod cold_post;
mod cold_webhook;
mod entrance;
mod given;
mod hot_get;
mod immutable_asset;
mod keyed_post;
mod preview;
mod seed;
mod standing;
mod static_pool;
mod thaw;
mod websocket_reconnect;

//! What no request decides, decided without touching any record: [`hosts`] who owns which host,
//! [`allocations`] what becomes of allocations, [`beside`] what runs beside them and when, [`keep`] how long what
//! is not used is kept, [`promotion`] what may be promoted, and what each event does to one,
//! [`certificates`] which are to be ordered, and when.

pub mod allocations;
pub mod beside;
pub mod certificates;
pub mod hosts;
pub mod keep;
pub mod promotion;

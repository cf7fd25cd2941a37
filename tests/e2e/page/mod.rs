//! The page that a person sees where the edge answers itself: it follows the app, goes on by itself or offers to
//! send a form again, and looks as its operator wants.

mod address;
mod brand;
mod browser;

pub use address::ADDRESS;

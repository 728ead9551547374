//! Real clients against real boxes. Layout: one file a subject.

mod bad_input;
mod browser;
mod cli;
mod helm;
mod kubectl;
mod kubernetes;
mod layering;
mod people;
mod pipelines;
mod survival;

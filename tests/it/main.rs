//! Real clients against real boxes. Layout: one file a subject.

mod bad_input;
mod browser;
mod cli;
mod helm;
mod kube_rs;
mod kubectl;
mod kubernetes;
mod layering;
mod people;
mod pipelines;
mod postgres;
mod python_clients;
mod survival;

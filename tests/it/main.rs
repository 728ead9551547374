//! Real clients against real boxes. Layout: one file a subject.

mod bad_input;
mod browser;
mod cli;
mod engine;
mod helm;
mod identity;
mod isolation;
mod kube_rs;
mod kubectl;
mod kubernetes;
mod layering;
mod outside_stores;
mod own_users;
mod people;
mod pipeline_clients;
mod pipeline_resources;
mod pipelines;
mod postgres;
mod python_clients;
mod registry;
mod routes;
mod snapshots;
mod survival;

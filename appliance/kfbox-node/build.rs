//! Generates the device plugins' protocol from `proto/` with protox, so that no protoc need be installed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(["deviceplugin.proto"], ["proto"])?;
    tonic_prost_build::configure().btree_map(".").build_server(false).compile_fds(descriptors)?;
    Ok(())
}

//! Kubernetes clients in Python: `kubernetes`, its dynamic side, and kr8s. What they do is in `tests/clients/`.

use kfbox_tests::{Python, Space, TestBox, run};

fn script(name: &str) -> anyhow::Result<()> {
    let space = Space::new(&TestBox::shared()?, &format!("py-{}", name.replace('_', "-")))?;
    let script = Python::Clients.script(&format!("tests/clients/{name}.py"));
    let mut command = space.command(script.get_program());
    run(command.args(script.get_args()))?.ok()?;
    Ok(())
}

#[test]
fn python_client_types_streams_and_tokens() -> anyhow::Result<()> {
    script("kubernetes_typed")
}

#[test]
fn python_dynamic_client_and_watches() -> anyhow::Result<()> {
    script("kubernetes_dynamic")
}

#[test]
fn kr8s_in_threads() -> anyhow::Result<()> {
    script("kr8s_sync")
}

#[test]
fn kr8s_on_asyncio() -> anyhow::Result<()> {
    script("kr8s_async")
}

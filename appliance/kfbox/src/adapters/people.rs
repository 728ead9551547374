//! What the pipelines may do in people's names while they are away: the gateway knows who is still let in.

use kfbox_base::UserInfo;
use kfbox_gateway::Gateway;
use kfbox_pipelines::People;

impl People for crate::adapters::identity::GatewayTokens {
    fn current(&self, user: &UserInfo) -> Result<UserInfo, String> {
        current(&self.0, user)
    }
}

fn current(gateway: &Gateway, user: &UserInfo) -> Result<UserInfo, String> {
    if let Some(now) = gateway.active_user(&user.username) {
        // Somebody else may have the address since.
        return if user.uid.is_empty() || user.uid == now.uid { Ok(now) } else { Err("the account is gone".into()) };
    }
    if let Some(known) = gateway.list_users().into_iter().find(|u| u.email == user.username) {
        let why = if known.disabled { "the account is disabled" } else { "the person is gone from their directory" };
        return Err(why.into());
    }
    // People of the gateway have an id; service accounts and certificates are the cluster's own matter.
    if user.uid.is_empty() || user.service_account().is_some() {
        Ok(user.clone())
    } else {
        Err("the account is gone".into())
    }
}

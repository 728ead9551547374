//! People, tokens and sessions. A person gets a namespace of their own; removing a person leaves it and its data.

use super::{DaemonBackend, failed};
use crate::{
    adapters::identity::settle,
    control::{
        ErrorBody, ImportedUser, NewUser, People, SessionRow, TokenRequest, TokenResponse, TokenRow, UserChange,
        UserRow,
    },
};
use futures::future::BoxFuture;
use kfbox_gateway::{Scope, UserView};
use kfbox_platform::DefaultProfile;
use std::time::Duration;

/// The longest life of a personal token made on the command line.
const LONGEST_TOKEN: Duration = Duration::from_secs(366 * 86_400);

const WHO: &str = "`kfbox user list` shows who is there";

impl People for DaemonBackend {
    fn users(&self) -> Vec<UserRow> {
        self.gateway.list_users().into_iter().map(row).collect()
    }

    fn add_user(&self, user: NewUser) -> BoxFuture<'_, Result<UserRow, ErrorBody>> {
        Box::pin(async move {
            let added = self.gateway.add_user(&user.email, &user.password, &user.groups).await;
            added.map_err(|e| failed(e, WHO))?;
            self.settle(&user.email).await
        })
    }

    fn import_user(&self, user: ImportedUser) -> BoxFuture<'_, Result<UserRow, ErrorBody>> {
        Box::pin(async move {
            let added = self.gateway.import_user(&user.email, &user.hash, &user.groups).await;
            added.map_err(|e| failed(e, WHO))?;
            self.settle(&user.email).await
        })
    }

    fn set_password(&self, email: String, password: String) -> BoxFuture<'_, Result<(), ErrorBody>> {
        Box::pin(async move { self.gateway.set_password(&email, &password).await.map_err(|e| failed(e, WHO)) })
    }

    fn change_user(&self, change: UserChange) -> BoxFuture<'_, Result<UserRow, ErrorBody>> {
        Box::pin(async move {
            let email = &change.email;
            if let Some(groups) = &change.groups {
                self.gateway.set_groups(email, groups).await.map_err(|e| failed(e, WHO))?;
            }
            if let Some(disabled) = change.disabled {
                self.gateway.set_disabled(email, disabled).await.map_err(|e| failed(e, WHO))?;
            }
            self.found(email)
        })
    }

    fn remove_user(&self, email: String) -> BoxFuture<'_, Result<UserRow, ErrorBody>> {
        Box::pin(async move {
            let user = self.found(&email)?;
            self.gateway.remove_user(&email).await.map_err(|e| failed(e, WHO))?;
            Ok(user)
        })
    }

    fn create_token(&self, request: TokenRequest) -> BoxFuture<'_, Result<TokenResponse, ErrorBody>> {
        Box::pin(async move {
            let expires = Duration::from_secs(request.expires_in_seconds);
            if expires > LONGEST_TOKEN {
                return Err(failed("a token holds at most 366 days", "choose a shorter --expires"));
            }
            let user = request.user.unwrap_or_else(|| self.user.clone());
            let mut wanted = kfbox_gateway::TokenRequest::new(request.name, Some(expires));
            if !request.scopes.is_empty() {
                wanted.scopes = request.scopes.iter().map(|s| scope(s)).collect::<Result<_, _>>()?;
            }
            let created = self.gateway.create_token(&user, wanted).await;
            let answer =
                |t: kfbox_gateway::CreatedToken| TokenResponse { token: t.reveal().to_owned(), id: t.token.id };
            created.map(answer).map_err(|e| failed(e, WHO))
        })
    }

    fn tokens(&self, email: Option<String>) -> Result<Vec<TokenRow>, ErrorBody> {
        let email = email.map(|e| self.found(&e)).transpose()?.map(|u| u.email);
        let tokens = self.gateway.list_tokens(email.as_deref()).into_iter().map(|t| TokenRow {
            id: t.id,
            email: t.email,
            name: t.name,
            scopes: t.scopes.iter().map(|s| word(*s).to_owned()).collect(),
            created: t.created,
            expires: t.expires,
        });
        Ok(tokens.collect())
    }

    fn revoke_token(&self, id: String) -> BoxFuture<'_, Result<(), ErrorBody>> {
        Box::pin(async move {
            match self.gateway.revoke_token(&id).await.map_err(|e| failed(e, "`kfbox logs` shows more"))? {
                true => Ok(()),
                false => Err(failed(format!("there is no token {id}"), "`kfbox token list` shows their ids")),
            }
        })
    }

    fn sessions(&self, email: Option<String>) -> Result<Vec<SessionRow>, ErrorBody> {
        let email = email.map(|e| self.found(&e)).transpose()?.map(|u| u.email);
        let sessions = self.gateway.list_sessions(email.as_deref()).into_iter().map(|s| SessionRow {
            id: s.id,
            email: s.email,
            created: s.created,
            expires: s.expires,
            address: s.address,
            agent: s.agent,
        });
        Ok(sessions.collect())
    }

    fn revoke_session(&self, id: String) -> BoxFuture<'_, Result<(), ErrorBody>> {
        Box::pin(async move {
            match self.gateway.revoke_session(&id).await.map_err(|e| failed(e, "`kfbox logs` shows more"))? {
                true => Ok(()),
                false => Err(failed(format!("there is no session {id}"), "`kfbox session list` shows their ids")),
            }
        })
    }
}

impl DaemonBackend {
    fn found(&self, email: &str) -> Result<UserRow, ErrorBody> {
        let wanted = email.trim().to_lowercase();
        let user = self.gateway.list_users().into_iter().find(|u| u.email == wanted);
        user.map(row).ok_or_else(|| failed(format!("there is no user {email}"), WHO))
    }

    /// A namespace of their own for a new person; one that is there already stays as it is.
    async fn settle(&self, email: &str) -> Result<UserRow, ErrorBody> {
        let user = self.found(email)?;
        let settled = settle(self.api.client(), &user.email).await;
        let next = "the user is there, but has no namespace yet: create a Profile with kubectl";
        settled.map(|()| user).map_err(|e| failed(e, next))
    }
}

fn row(user: UserView) -> UserRow {
    UserRow {
        namespace: DefaultProfile::for_user(&user.email).name,
        email: user.email,
        groups: user.groups,
        disabled: user.disabled,
        departed: user.departed,
        created: user.created,
    }
}

fn word(scope: Scope) -> &'static str {
    match scope {
        Scope::Platform => "platform",
        Scope::Kubernetes => "kubernetes",
    }
}

fn scope(text: &str) -> Result<Scope, ErrorBody> {
    let found = Scope::ALL.into_iter().find(|s| word(*s) == text);
    found.ok_or_else(|| failed(format!("{text:?} is no scope of a token"), "the scopes are platform and kubernetes"))
}

//! One way from nothing to a certificate: account, order, challenges, request, download (RFC 8555 section 7.1).
//!
//! Guarantees: an order is on disk before its challenges begin, so that a daemon that is killed goes on with the same
//! order instead of making others, which servers count; every wait has an end; nothing of a failed order is served.

use super::{
    Acme, AcmeChallenge, AcmeError,
    challenges::Offer,
    client::Client,
    files::{Leaf, Pending},
};
use instant_acme::{
    Account, AuthorizationStatus, ChallengeStatus, ChallengeType, Error, ExternalAccountKey, Identifier, NewAccount,
    NewOrder, Order, OrderStatus, RetryPolicy,
};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256};
use std::time::Duration;

/// How long a server may take to look at the challenges, and then to sign.
const PATIENCE: RetryPolicy =
    RetryPolicy::new().initial_delay(Duration::from_millis(250)).timeout(Duration::from_secs(90));

/// A certificate from the server, in its place on the disk.
pub(super) async fn obtain(acme: &Acme, client: &Client) -> Result<Leaf, AcmeError> {
    let account = account(acme, client).await?;
    let (mut order, pending) = begin(acme, &account).await?;
    let outcome = carry_out(acme, &mut order, &pending).await;
    match &outcome {
        // The same order can go on, also when only the disk had no room for what came of it.
        Err(AcmeError::Server(error)) if !refused(error) => {}
        Err(AcmeError::File { .. }) => {}
        _ => acme.files.forget_order(),
    }
    outcome
}

/// Whether the server said no, rather than nothing.
fn refused(error: &Error) -> bool {
    matches!(error, Error::Api(_))
}

async fn account(acme: &Acme, client: &Client) -> Result<Account, AcmeError> {
    let config = &acme.config;
    let directory = config.directory.as_str();
    let builder = Account::builder_with_http(Box::new(client.clone()));
    if let Some(known) = acme.files.load_account(directory)? {
        return Ok(builder.from_credentials(known).await?);
    }
    let contact: Vec<String> = config.contact.iter().map(|c| format!("mailto:{c}")).collect();
    let contact: Vec<&str> = contact.iter().map(String::as_str).collect();
    // That the terms are agreed to is the configuration's, which is not taken without.
    let wanted = NewAccount { contact: &contact, terms_of_service_agreed: true, only_return_existing: false };
    let bound = acme.external.as_ref().map(|(id, key)| ExternalAccountKey::new(id.clone(), key));
    let (account, credentials) = builder.create(&wanted, directory.to_owned(), bound.as_ref()).await?;
    acme.files.store_account(directory, &credentials)?;
    tracing::info!(target: "audit", account = account.id(), "registered with the ACME server");
    Ok(account)
}

/// The order that was under way, if the server still knows it, else a new one.
async fn begin(acme: &Acme, account: &Account) -> Result<(Order, Pending), AcmeError> {
    let config = &acme.config;
    if let Some(pending) = acme.files.load_order(config)? {
        match account.order(pending.url.clone()).await {
            Ok(mut order) => {
                if order.state().status != OrderStatus::Invalid {
                    return Ok((order, pending));
                }
            }
            Err(error) if refused(&error) && !unknown_account(&error) => {}
            Err(error) => return Err(lost_account(acme, error)),
        }
        acme.files.forget_order();
    }
    let names: Vec<Identifier> = config.names.iter().map(|name| identifier(name)).collect();
    let order = account.new_order(&NewOrder::new(&names)).await.map_err(|error| lost_account(acme, error))?;
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(AcmeError::Request)?;
    let pending = Pending {
        directory: config.directory.as_str().to_owned(),
        names: config.names.clone(),
        url: order.url().to_owned(),
        key_pem: key.serialize_pem(),
    };
    acme.files.store_order(&pending)?;
    Ok((order, pending))
}

fn unknown_account(error: &Error) -> bool {
    is_problem(error, "accountDoesNotExist")
}

/// By its name in RFC 8555 section 6.7.
fn is_problem(error: &Error, name: &str) -> bool {
    let Error::Api(problem) = error else { return false };
    problem.r#type.as_deref().and_then(|t| t.strip_prefix("urn:ietf:params:acme:error:")) == Some(name)
}

/// A server that was set up anew does not know us any more; the next attempt registers again.
fn lost_account(acme: &Acme, error: Error) -> AcmeError {
    if unknown_account(&error) {
        acme.files.forget_account(acme.config.directory.as_str());
    }
    error.into()
}

fn identifier(name: &str) -> Identifier {
    name.parse().map_or_else(|_| Identifier::Dns(name.to_owned()), Identifier::Ip)
}

async fn carry_out(acme: &Acme, order: &mut Order, pending: &Pending) -> Result<Leaf, AcmeError> {
    if order.state().status == OrderStatus::Pending {
        let offers = offer(acme, order).await?;
        let status = order.poll_ready(&PATIENCE).await;
        drop(offers);
        match status {
            Ok(OrderStatus::Ready) => {}
            Ok(_) => return Err(why_invalid(order).await),
            Err(Error::Api(problem)) => return Err(refusal(order, problem.to_string()).await),
            Err(error) => return Err(error.into()),
        }
    }
    if order.state().status == OrderStatus::Ready {
        let key = KeyPair::from_pem(&pending.key_pem).map_err(AcmeError::Request)?;
        let mut params = CertificateParams::new(pending.names.clone()).map_err(AcmeError::Request)?;
        // Names belong into the alternative names alone.
        params.distinguished_name = DistinguishedName::new();
        let request = params.serialize_request(&key).map_err(AcmeError::Request)?;
        match order.finalize_csr(request.der()).await {
            // The same request from before this daemon was killed is being carried out; its key is the same, too.
            Err(error) if is_problem(&error, "orderNotReady") => {}
            done => done?,
        }
    }
    let chain = order.poll_certificate(&PATIENCE).await?;
    acme.files.keep(&chain, &pending.key_pem, &pending.names)
}

/// Puts an answer out for each name that the server has not seen yet, and tells it to look.
async fn offer(acme: &Acme, order: &mut Order) -> Result<Vec<Offer>, AcmeError> {
    let (kind, word) = match acme.config.challenge {
        AcmeChallenge::TlsAlpn => (ChallengeType::TlsAlpn01, "tls-alpn-01"),
        AcmeChallenge::Http => (ChallengeType::Http01, "http-01"),
    };
    let mut offers = Vec::new();
    let mut all = order.authorizations();
    while let Some(one) = all.next().await {
        let mut one = one?;
        let name = one.identifier().to_string();
        match one.status {
            AuthorizationStatus::Valid => continue,
            AuthorizationStatus::Pending => {}
            status => return Err(AcmeError::Refused { name, why: format!("its authorization is {status:?}") }),
        }
        let Some(mut challenge) = one.challenge(kind.clone()) else {
            return Err(AcmeError::NoChallenge { name, wanted: word });
        };
        let authorization = challenge.key_authorization();
        offers.push(match acme.config.challenge {
            AcmeChallenge::TlsAlpn => {
                acme.challenges.offer_certificate(&name, authorization.digest().as_ref()).map_err(AcmeError::Offer)?
            }
            AcmeChallenge::Http => acme.challenges.offer_text(&challenge.token, authorization.as_str()),
        });
        // One that the server looks at already, since before this daemon was killed, is not told of again.
        if challenge.status == ChallengeStatus::Pending {
            challenge.set_ready().await.map_err(|error| match error {
                Error::Api(problem) => AcmeError::Refused { name, why: problem.to_string() },
                error => error.into(),
            })?;
        }
    }
    Ok(offers)
}

async fn why_invalid(order: &mut Order) -> AcmeError {
    refusal(order, "the order became invalid".into()).await
}

/// What the server says of the name that it did not believe.
async fn refusal(order: &mut Order, otherwise: String) -> AcmeError {
    let mut all = order.authorizations();
    while let Some(Ok(mut one)) = all.next().await {
        let name = one.identifier().to_string();
        let Ok(state) = one.refresh().await else { continue };
        if let Some(problem) = state.challenges.iter().find_map(|c| c.error.as_ref()) {
            return AcmeError::Refused { name, why: problem.to_string() };
        }
    }
    AcmeError::Invalid(otherwise)
}

//! Who calls and what they may do: certificates, service-account tokens, authentication of requests, RBAC, and the
//! review APIs built on them. Invariant: every request is decided by [`rbac::Rbac`] alone, whatever way its caller
//! proved who they are. Upstream: <https://kubernetes.io/docs/reference/access-authn-authz/>.

pub mod authenticate;
mod files;
pub mod pki;
pub mod policy;
pub mod rbac;
pub mod reviews;
pub mod signing;
pub mod tokens;

pub use authenticate::{Authenticator, AuthnError, TokenAuthenticator};
pub use pki::{Authority, Issued, PkiError};
pub use rbac::{Rbac, RbacAuthorizer};
pub use reviews::ReviewError;
pub use signing::{SigningError, SigningRequest};
pub use tokens::{BoundKind, ObjectFacts, ObjectLookup, ServiceAccountTokens, TokenError};

//! TLS as libpq does it, with the library that libpq does it with: a certificate that `psql` takes is taken,
//! and one that it refuses is refused.
//!
//! Below `verify-ca`, certificates are not looked at, unless a root certificate is there to hold them against.

mod context;
mod names;

use std::io;
use std::path::PathBuf;
use std::pin::Pin;

use openssl::error::ErrorStack;
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::ssl::{Ssl, SslRef};
use openssl::x509::{X509, X509VerifyResult};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_openssl::SslStream;

use super::conninfo::values::{Host, SslMode};
use super::conninfo::{Roots, Tls};
use super::text::one_line;

/// Why there is no TLS with a server.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("the server does not support TLS, and sslmode {0} insists on it")]
    Refused(SslMode),
    #[error("the server answered the request for TLS with byte {0}: it is not PostgreSQL")]
    Answer(u8),
    #[error("bytes came in the clear before TLS began: somebody may be on the line")]
    Early,
    #[error("option {option}: {what}")]
    Option { option: &'static str, what: String },
    #[error("option {option}: {}: {what}", file.display())]
    File { option: &'static str, file: PathBuf, what: String },
    #[error("the server's certificate is not accepted: {}", .0.error_string())]
    Certificate(X509VerifyResult),
    #[error("the server's certificate is for {}, and not for {host:?}", list(names))]
    Name { host: String, names: Vec<String> },
    #[error("TLS: {0}")]
    Handshake(String),
    /// What the server said after the handshake.
    #[error("TLS: {0}")]
    Alert(String),
    #[error("TLS: {}", stack(.0))]
    Setup(#[from] ErrorStack),
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "nobody by name".to_owned() } else { one_line(&names.join(", ")) }
}

/// OpenSSL's errors without its places in the source.
fn stack(errors: &ErrorStack) -> String {
    let reasons: Vec<&str> = errors.errors().iter().filter_map(|error| error.reason()).collect();
    if reasons.is_empty() { "an error without a reason".to_owned() } else { reasons.join(": ") }
}

impl TlsError {
    /// What to do about it.
    pub fn advice(&self, tls: &Tls) -> Option<String> {
        // X509_V_ERR_… of OpenSSL's x509_vfy.h.
        const ISSUER_UNKNOWN: [i32; 5] = [2, 18, 19, 20, 21];
        const NOT_YET_VALID: i32 = 9;
        const EXPIRED: i32 = 10;
        const REVOKED: i32 = 23;
        const NO_CRL: i32 = 3;
        const CRL_EXPIRED: i32 = 12;
        let advice = match self {
            Self::Refused(_) => {
                "switch ssl on at the server, or use sslmode=prefer or disable if the network is safe"
                    .to_owned()
            }
            Self::Certificate(result) => match result.as_raw() {
                code if ISSUER_UNKNOWN.contains(&code) => format!(
                    "the certificate's issuer is not among those trusted: {}",
                    match &tls.roots {
                        Roots::System => "the operating system's; name a file by sslrootcert".to_owned(),
                        Roots::File(file) => format!("sslrootcert={} must hold it", file.display()),
                        Roots::Default => "root.crt in ~/.postgresql must hold it".to_owned(),
                    }
                ),
                EXPIRED => "renew the server's certificate".to_owned(),
                NOT_YET_VALID => "are the clocks of both machines right?".to_owned(),
                REVOKED => {
                    "the server must be given a new certificate: this one is in the list of sslcrl".to_owned()
                }
                NO_CRL | CRL_EXPIRED => "renew the revocation list that sslcrl or sslcrldir names".to_owned(),
                _ => return None,
            },
            Self::Name { .. } => {
                "connect by a name that the certificate is for, with hostaddr for the address if need be; or \
                 have it made for this name; or use sslmode=verify-ca"
                    .to_owned()
            }
            Self::Handshake(what) | Self::Alert(what) if what.contains("certificate required") => {
                "the server wants a client certificate: name it by sslcert and sslkey".to_owned()
            }
            Self::Handshake(what) | Self::Alert(what) if what.contains("alert unknown ca") => {
                "the server does not trust the issuer of our certificate, which sslcert names: ssl_ca_file of \
                 the server must hold it"
                    .to_owned()
            }
            _ => return None,
        };
        Some(advice)
    }
}

/// What a connection is once TLS stands.
pub struct Secured<S> {
    pub stream: SslStream<S>,
    /// What ties the login to this TLS session. `None` when the certificate's signature does not say which
    /// digest that would be.
    pub channel_binding: Option<Vec<u8>>,
}

/// Shakes hands over a connection on which the server is ready to.
///
/// # Errors
/// When a file cannot be used, the handshake fails, or the server is not who it should be.
pub async fn secure<S>(stream: S, host: &Host, tls: &Tls) -> Result<Secured<S>, TlsError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    if tls.mode == SslMode::VerifyFull && host.name.is_empty() {
        let what = "sslmode verify-full needs the name that the server's certificate must be for".to_owned();
        return Err(TlsError::Option { option: "host", what });
    }
    let context = context::of(tls)?;
    let mut ssl = Ssl::new(&context)?;
    if tls.sends_name && names::is_dns_name(&host.name) {
        ssl.set_hostname(&host.name)?;
    }
    let mut stream = SslStream::new(ssl, stream)?;
    if let Err(error) = Pin::new(&mut stream).connect().await {
        return Err(handshake_error(stream.ssl(), &error));
    }
    let Some(certificate) = stream.ssl().peer_certificate() else {
        return Err(TlsError::Handshake("the server has shown no certificate".to_owned()));
    };
    if tls.mode == SslMode::VerifyFull {
        names::verify(&certificate, &host.name)?;
    }
    let channel_binding = server_end_point(&certificate);
    Ok(Secured { stream, channel_binding })
}

fn handshake_error(ssl: &SslRef, error: &openssl::ssl::Error) -> TlsError {
    let result = ssl.verify_result();
    if result != X509VerifyResult::OK
        && error.ssl_error().is_some_and(|it| stack(it).contains("verify failed"))
    {
        return TlsError::Certificate(result);
    }
    TlsError::Handshake(match (error.ssl_error(), error.io_error()) {
        (Some(errors), _) => stack(errors),
        (None, Some(error)) => one_line(&error.to_string()),
        (None, None) => "the server ended the connection during the handshake".to_owned(),
    })
}

/// What a later error on a secured connection says: an alert of the server, such as its wish for a client
/// certificate, comes with the first read in TLS 1.3.
pub fn alert(error: &io::Error) -> Option<TlsError> {
    let inner = error.get_ref()?.downcast_ref::<openssl::ssl::Error>()?;
    Some(TlsError::Alert(stack(inner.ssl_error()?)))
}

/// `tls-server-end-point` of RFC 5929: the certificate's digest, by the digest of its signature, but SHA-256 in
/// place of what is weaker.
fn server_end_point(certificate: &X509) -> Option<Vec<u8>> {
    let signature = certificate.signature_algorithm().object().nid().signature_algorithms()?;
    let digest = match signature.digest {
        Nid::MD5 | Nid::SHA1 => MessageDigest::sha256(),
        nid => MessageDigest::from_nid(nid)?,
    };
    Some(certificate.digest(digest).ok()?.to_vec())
}

//! The files that TLS is done with, read into a context: root certificates, revocation lists, a client's
//! certificate and key. One context serves all connections that want the same, as long as the files stay as
//! they are: what the operating system trusts takes some megabytes.

use std::collections::HashMap;
use std::fs::{self, Metadata};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex, PoisonError};

use openssl::error::ErrorStack;
use openssl::pkey::{PKey, Private};
use openssl::ssl::{
    SslContext, SslContextBuilder, SslFiletype, SslMethod, SslMode, SslOptions, SslVerifyMode, SslVersion,
};
use openssl::x509::X509;
use openssl::x509::store::X509Lookup;
use openssl::x509::verify::X509VerifyFlags;

use super::{TlsError, stack};
use crate::postgres::conninfo::values::{self, CertificateMode, TlsVersion};
use crate::postgres::conninfo::{Roots, Tls};

/// Where Debian keeps what the system trusts. Only looked at to notice changes.
const SYSTEM_ROOTS: &str = "/etc/ssl/certs";

/// What PostgreSQL's protocol is called in TLS, behind its length.
const PROTOCOL: &[u8] = b"\x0apostgresql";

/// How many contexts are kept.
const KEPT: usize = 32;

struct Kept {
    stamps: Vec<Stamp>,
    context: SslContext,
}

static CONTEXTS: LazyLock<Mutex<HashMap<Tls, Kept>>> = LazyLock::new(Mutex::default);

/// The context for these settings, from the files as they are now.
pub fn of(tls: &Tls) -> Result<SslContext, TlsError> {
    let files = Files::of(tls);
    let stamps = files.stamps(tls);
    let mut contexts = CONTEXTS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(kept) = contexts.get(tls).filter(|kept| kept.stamps == stamps) {
        return Ok(kept.context.clone());
    }
    let context = files.read(tls)?;
    if contexts.len() >= KEPT {
        contexts.clear();
    }
    contexts.insert(tls.clone(), Kept { stamps, context: context.clone() });
    Ok(context)
}

/// What a file was like when it was read.
type Stamp = Option<(u64, u64, i64, i64, u32)>;

fn stamp(file: &Path) -> Stamp {
    let of = |it: Metadata| (it.ino(), it.size(), it.mtime(), it.mtime_nsec(), it.mode());
    fs::metadata(file).map(of).ok()
}

/// The files that are there to be used, those that nobody named included.
struct Files {
    roots: Option<PathBuf>,
    crl: Option<PathBuf>,
    crl_directory: Option<PathBuf>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
}

impl Files {
    fn of(tls: &Tls) -> Self {
        let default = |name: &str| tls.directory.as_ref().map(|directory| directory.join(name));
        let has_crl = tls.crl.is_some() || tls.crl_directory.is_some();
        let certificate = match tls.certificate_mode {
            CertificateMode::Disable => None,
            _ => tls.certificate.clone().or_else(|| default("postgresql.crt")),
        };
        Self {
            roots: match &tls.roots {
                Roots::System => None,
                Roots::File(file) => Some(file.clone()),
                Roots::Default => default("root.crt"),
            },
            crl: if has_crl { tls.crl.clone() } else { default("root.crl") },
            crl_directory: tls.crl_directory.clone(),
            key: certificate.as_ref().and_then(|_| tls.key.clone().or_else(|| default("postgresql.key"))),
            certificate,
        }
    }

    fn stamps(&self, tls: &Tls) -> Vec<Stamp> {
        let system = (tls.roots == Roots::System).then(|| PathBuf::from(SYSTEM_ROOTS));
        [&self.roots, &self.crl, &self.crl_directory, &self.certificate, &self.key, &system]
            .into_iter()
            .map(|file| file.as_ref().and_then(|file| stamp(file)))
            .collect()
    }

    fn read(&self, tls: &Tls) -> Result<SslContext, TlsError> {
        let mut builder = SslContext::builder(SslMethod::tls_client())?;
        builder.set_options(SslOptions::NO_SSLV2 | SslOptions::NO_SSLV3);
        // Buffers are given back while a session is idle: most are, most of the time.
        builder.set_mode(
            SslMode::AUTO_RETRY
                | SslMode::ACCEPT_MOVING_WRITE_BUFFER
                | SslMode::ENABLE_PARTIAL_WRITE
                | SslMode::RELEASE_BUFFERS,
        );
        builder.set_min_proto_version(tls.minimum.map(version))?;
        builder.set_max_proto_version(tls.maximum.map(version))?;
        builder.set_alpn_protos(PROTOCOL)?;
        let verifies = self.read_roots(tls, &mut builder)?;
        builder.set_verify(if verifies { SslVerifyMode::PEER } else { SslVerifyMode::NONE });
        self.read_certificate(tls, &mut builder)?;
        Ok(builder.build())
    }

    /// Gives whether there is anything to verify with.
    fn read_roots(&self, tls: &Tls, builder: &mut SslContextBuilder) -> Result<bool, TlsError> {
        if tls.roots == Roots::System {
            builder.set_default_verify_paths()?;
        } else {
            let needed = tls.mode >= values::SslMode::VerifyCa;
            let missing = |file: &Path| TlsError::File {
                option: "sslrootcert",
                file: file.to_owned(),
                what: format!(
                    "does not exist, and sslmode {} needs root certificates: put them there, or use \
                     sslrootcert=system",
                    tls.mode
                ),
            };
            let Some(file) = &self.roots else {
                return if needed { Err(missing(Path::new("~/.postgresql/root.crt"))) } else { Ok(false) };
            };
            if fs::metadata(file).is_err() {
                return if needed { Err(missing(file)) } else { Ok(false) };
            }
            builder.set_ca_file(file).map_err(|error| unreadable("sslrootcert", file, &error))?;
        }
        self.read_crl(tls, builder)?;
        Ok(true)
    }

    /// As in libpq, a file that is not there is no obstacle, while a directory, or a file of something else, that
    /// has no list is; unlike there, the former is told, where it was named.
    fn read_crl(&self, tls: &Tls, builder: &mut SslContextBuilder) -> Result<(), TlsError> {
        let store = builder.cert_store_mut();
        let mut has_list = false;
        if let Some(file) = &self.crl {
            let readable = file.to_str().filter(|_| file.is_file());
            let lookup = store.add_lookup(X509Lookup::file())?;
            let loaded = readable.map(|file| lookup.load_crl_file(file, SslFiletype::PEM));
            has_list = matches!(loaded, Some(Ok(count)) if count > 0) || holds_certificate(file);
            // What OpenSSL notes of a failure must not be taken for the next call's.
            let _ = ErrorStack::get();
            if !has_list && tls.crl.is_some() {
                tracing::warn!(
                    "option sslcrl: {} holds no revocation list: nothing is revoked",
                    file.display()
                );
            }
        }
        if let Some(name) = self.crl_directory.as_ref().and_then(|directory| directory.to_str()) {
            store.add_lookup(X509Lookup::hash_dir())?.add_dir(name, SslFiletype::PEM)?;
            has_list = true;
        }
        if has_list {
            store.set_flags(X509VerifyFlags::CRL_CHECK | X509VerifyFlags::CRL_CHECK_ALL)?;
        }
        Ok(())
    }

    fn read_certificate(&self, tls: &Tls, builder: &mut SslContextBuilder) -> Result<(), TlsError> {
        let needed = tls.certificate_mode == CertificateMode::Require;
        let what = "sslcertmode=require needs a certificate: name it by sslcert and sslkey".to_owned();
        let Some(file) = &self.certificate else {
            return if needed { Err(TlsError::Option { option: "sslcert", what }) } else { Ok(()) };
        };
        match fs::metadata(file) {
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                // libpq goes on without it, and the server says whether it wants one.
                return if needed { Err(TlsError::Option { option: "sslcert", what }) } else { Ok(()) };
            }
            Err(error) => {
                return Err(TlsError::File {
                    option: "sslcert",
                    file: file.clone(),
                    what: error.to_string(),
                });
            }
        }
        builder.set_certificate_chain_file(file).map_err(|error| unreadable("sslcert", file, &error))?;
        let Some(key) = &self.key else {
            let what = "there is a certificate and no key: name it by sslkey".to_owned();
            return Err(TlsError::Option { option: "sslkey", what });
        };
        let private = read_key(key, tls)?;
        builder.set_private_key(&private).map_err(|error| unreadable("sslkey", key, &error))?;
        builder.check_private_key().map_err(|_| TlsError::File {
            option: "sslkey",
            file: key.clone(),
            what: format!("not the key of the certificate {}", file.display()),
        })
    }
}

fn holds_certificate(file: &Path) -> bool {
    fs::read(file).is_ok_and(|bytes| X509::stack_from_pem(&bytes).is_ok_and(|found| !found.is_empty()))
}

fn version(version: TlsVersion) -> SslVersion {
    match version {
        TlsVersion::V1_0 => SslVersion::TLS1,
        TlsVersion::V1_1 => SslVersion::TLS1_1,
        TlsVersion::V1_2 => SslVersion::TLS1_2,
        TlsVersion::V1_3 => SslVersion::TLS1_3,
    }
}

fn unreadable(option: &'static str, file: &Path, error: &ErrorStack) -> TlsError {
    TlsError::File { option, file: file.to_owned(), what: format!("cannot be used: {}", stack(error)) }
}

/// A private key in any form that OpenSSL knows: PKCS#8, PKCS#1 or EC, as PEM or DER, encrypted or not.
fn read_key(file: &Path, tls: &Tls) -> Result<PKey<Private>, TlsError> {
    let wrong = |what: String| TlsError::File { option: "sslkey", file: file.to_owned(), what };
    let metadata = fs::metadata(file).map_err(|error| match error.kind() {
        ErrorKind::NotFound => {
            wrong("does not exist, and there is a certificate whose key it should be".to_owned())
        }
        _ => wrong(error.to_string()),
    })?;
    if !metadata.is_file() {
        return Err(wrong("not a plain file".to_owned()));
    }
    // One that root owns may be readable by a group: that is how a system shares keys with its daemons.
    let (forbidden, command) = if metadata.uid() == 0 { (0o037, "640") } else { (0o077, "600") };
    if metadata.mode() & forbidden != 0 {
        return Err(wrong(format!("others have access to it: chmod {command}")));
    }
    let bytes = fs::read(file).map_err(|error| wrong(error.to_string()))?;
    let password = tls.key_password.as_ref().map(|password| password.reveal().as_bytes()).unwrap_or_default();
    let key = PKey::private_key_from_pem_callback(&bytes, |buffer| {
        // Longer than OpenSSL can take is as good as wrong.
        let length = password.len().min(buffer.len());
        buffer[..length].copy_from_slice(&password[..length]);
        Ok(length)
    });
    key.or_else(|error| PKey::private_key_from_der(&bytes).map_err(|_| error)).map_err(|error| {
        let is_encrypted = String::from_utf8_lossy(&bytes).contains("ENCRYPTED");
        wrong(match (is_encrypted, password.is_empty()) {
            (true, true) => "encrypted: give its password by sslpassword".to_owned(),
            (true, false) => "cannot be decrypted: sslpassword is wrong".to_owned(),
            (false, _) => format!("not a private key: {}", stack(&error)),
        })
    })
}

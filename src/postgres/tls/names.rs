//! Whether a certificate is for a host, by libpq's rules.

use std::net::IpAddr;

use openssl::nid::Nid;
use openssl::x509::X509Ref;

use super::TlsError;

/// Whether a name may be sent to the server to choose its certificate by: addresses may not.
pub fn is_dns_name(host: &str) -> bool {
    !host.is_empty() && !host.contains(':') && !host.chars().all(|c| c.is_ascii_digit() || c == '.')
}

/// # Errors
/// When the certificate is for others only.
pub fn verify(certificate: &X509Ref, host: &str) -> Result<(), TlsError> {
    let address: Option<IpAddr> = host.parse().ok();
    let mut names = Vec::new();
    // The subject's common name counts only where no alternative name of the host's own kind is given.
    let mut reads_common_name = true;
    for name in certificate.subject_alt_names().iter().flatten() {
        if let Some(name) = name.dnsname() {
            reads_common_name &= address.is_some();
            if matches(name, host) {
                return Ok(());
            }
            names.push(name.to_owned());
        } else if let Some(octets) = name.ipaddress() {
            reads_common_name &= address.is_none();
            let named = match octets.len() {
                4 => <[u8; 4]>::try_from(octets).map(IpAddr::from).ok(),
                16 => <[u8; 16]>::try_from(octets).map(IpAddr::from).ok(),
                _ => None,
            };
            if named.is_some() && named == address {
                return Ok(());
            }
            names.extend(named.map(|address| address.to_string()));
        }
    }
    if reads_common_name {
        let subject = certificate.subject_name();
        let common = subject.entries_by_nid(Nid::COMMONNAME).next();
        if let Some(name) = common.and_then(|entry| entry.data().to_string().ok()) {
            // What stands behind a zero byte is there to deceive.
            if !name.contains('\0') && matches(&name, host) {
                return Ok(());
            }
            names.push(name);
        }
    }
    Err(TlsError::Name { host: host.to_owned(), names })
}

/// A `*` is a whole first label and no more.
fn matches(name: &str, host: &str) -> bool {
    if name.eq_ignore_ascii_case(host) {
        return true;
    }
    let Some(domain) = name.strip_prefix('*').filter(|domain| domain.starts_with('.')) else { return false };
    let Some(at) = host.len().checked_sub(domain.len()).filter(|at| host.is_char_boundary(*at)) else {
        return false;
    };
    let (label, rest) = host.split_at(at);
    rest.eq_ignore_ascii_case(domain) && !label.is_empty() && !label.contains('.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_is_one_label() {
        for (name, host, fits) in [
            ("db.example.org", "DB.example.org", true),
            ("*.example.org", "db.example.org", true),
            ("*.example.org", "a.db.example.org", false),
            ("*.example.org", "example.org", false),
            ("*.example.org", ".example.org", false),
            ("*.example.org", "xexample.org", false),
            ("d*.example.org", "db.example.org", false),
            ("*", "db", false),
            ("*.", "db", false),
            ("*.org", "é.org", true),
            ("db.example.org", "db.example.com", false),
        ] {
            assert_eq!(matches(name, host), fits, "{name} {host}");
        }
    }

    #[test]
    fn addresses_are_no_dns_names() {
        for host in ["", "10.0.0.1", "::1", "fe80::1%eth0"] {
            assert!(!is_dns_name(host), "{host}");
        }
        assert!(is_dns_name("db1") && is_dns_name("1.db"));
    }
}

//! The cluster's certificate authority, made at the first start, and the certificates it gives out:
//! the server's own, and one for each host that joined.
//!
//! A host's certificate says who it is by its common name, and by the same name as a DNS name; whatever else a signing
//! request asks for is ignored. Hosts show it to the server, and to each other when they migrate a vm: the one that
//! receives is a TLS server then.

use crate::datadir::{DataDirError, write_whole};
use crate::secret::sha256_hex;
use drover_model::{HostId, TimeMs};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

const DAY: Duration = Duration::from_secs(86_400);
const CA_LIFE: Duration = DAY.saturating_mul(3_650);
const SERVER_LIFE: Duration = DAY.saturating_mul(365);
/// The server's certificate is made anew when less than this is left of it.
const SERVER_RENEW_BEFORE: Duration = DAY.saturating_mul(60);
/// A host renews by joining again.
const HOST_LIFE: Duration = DAY.saturating_mul(1_825);
/// Certificates begin this much earlier, for hosts whose clock is behind.
const CLOCK_SKEW: Duration = Duration::from_secs(3_600);

#[derive(Debug, thiserror::Error)]
pub enum CaError {
    #[error(
        "{path} can't be read; restore it from a backup (hosts trust this CA only), or remove the pki \
             directory and let every host join again"
    )]
    Read { path: PathBuf, source: std::io::Error },
    #[error(
        "{path} is damaged ({detail}); restore it from a backup, or remove the pki directory and let every \
             host join again"
    )]
    Damaged { path: PathBuf, detail: String },
    #[error("the CA certificate {path} expires within a year; remove the pki directory and let every host join again")]
    Expired { path: PathBuf },
    #[error("the pki directory can't be written")]
    Write(#[from] DataDirError),
    #[error("names: {name:?} is neither a DNS name nor an IP address")]
    Name { name: String },
    #[error("a certificate can't be made")]
    Sign(#[from] rcgen::Error),
    #[error("the server's key can't be used")]
    Key(#[from] rustls::Error),
    #[error("the certificate signing request is not valid ({detail}); send PKCS #10 in PEM, signed by its own key")]
    BadRequest { detail: String },
}

pub struct Ca {
    dir: PathBuf,
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    pem: String,
}

impl std::fmt::Debug for Ca {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Ca({})", self.fingerprint())
    }
}

impl Ca {
    /// Reads the CA in `dir`, or makes one.
    pub fn open(dir: &Path, now: TimeMs) -> Result<Self, CaError> {
        let (key_path, certificate_path) = (dir.join("ca.key"), dir.join("ca.crt"));
        // The certificate is written last: while it is missing, no one can have trusted this CA.
        if !certificate_path.exists() {
            let key = KeyPair::generate()?;
            let certificate = ca_params(now)?.self_signed(&key)?;
            write_whole(&key_path, key.serialize_pem().as_bytes(), 0o600)?;
            write_whole(&certificate_path, certificate.pem().as_bytes(), 0o644)?;
        }
        let pem = read(&certificate_path)?;
        let damaged = |path: &Path, detail: String| CaError::Damaged { path: path.to_owned(), detail };
        let certificate = CertificateDer::from_pem_slice(pem.as_bytes())
            .map_err(|error| damaged(&certificate_path, error.to_string()))?;
        let key = KeyPair::from_pem(&read(&key_path)?).map_err(|error| damaged(&key_path, error.to_string()))?;
        let until = expiry(&certificate).map_err(|detail| damaged(&certificate_path, detail))?;
        if until < after(now, SERVER_LIFE) {
            return Err(CaError::Expired { path: certificate_path });
        }
        let issuer = Issuer::from_ca_cert_der(&certificate, key)
            .map_err(|error| damaged(&certificate_path, error.to_string()))?;
        Ok(Self { dir: dir.to_owned(), issuer, certificate, pem })
    }

    pub fn pem(&self) -> &str {
        &self.pem
    }

    pub fn der(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// SHA-256 of the certificate in DER, as join tokens carry it.
    pub fn fingerprint(&self) -> String {
        sha256_hex(&self.certificate)
    }

    /// Checks a signing request before a join token is spent on it.
    pub fn read_request(&self, csr_pem: &str) -> Result<HostRequest, CaError> {
        CertificateSigningRequestParams::from_pem(csr_pem)
            .map(HostRequest)
            .map_err(|error| CaError::BadRequest { detail: error.to_string() })
    }

    /// The certificate of `host`, in PEM.
    pub fn issue_host(&self, host: &HostId, request: &HostRequest, now: TimeMs) -> Result<String, CaError> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, host.as_str());
        // A migration's source verifies this name, the destination the common name.
        let name = host.as_str().try_into().map_err(|_| CaError::Name { name: host.to_string() })?;
        params.subject_alt_names = vec![SanType::DnsName(name)];
        // No key exchange used today enciphers a key, and QEMU 7.2 refuses a certificate that does not permit it.
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        valid(&mut params, now, HOST_LIFE);
        Ok(params.signed_by(&request.0.public_key, &self.issuer)?.pem())
    }

    /// The server's certificate for these names: the one in the directory if it is still good, else a new one.
    pub fn server_key(&self, names: &BTreeSet<String>, now: TimeMs) -> Result<CertifiedKey, CaError> {
        let (key_path, certificate_path) = (self.dir.join("server.key"), self.dir.join("server.crt"));
        if !self.server_is_good(&key_path, &certificate_path, names, now) {
            let key = KeyPair::generate()?;
            let certificate = server_params(names, now)?.signed_by(&key, &self.issuer)?;
            write_whole(&key_path, key.serialize_pem().as_bytes(), 0o600)?;
            write_whole(&certificate_path, certificate.pem().as_bytes(), 0o644)?;
        }
        let damaged = |path: &Path, detail: String| CaError::Damaged { path: path.to_owned(), detail };
        let certificate = CertificateDer::from_pem_slice(read(&certificate_path)?.as_bytes())
            .map_err(|error| damaged(&certificate_path, error.to_string()))?;
        let key = PrivateKeyDer::from_pem_slice(read(&key_path)?.as_bytes())
            .map_err(|error| damaged(&key_path, error.to_string()))?;
        let chain = vec![certificate, self.certificate.clone()];
        Ok(CertifiedKey::from_der(chain, key, &rustls::crypto::ring::default_provider())?)
    }

    fn server_is_good(&self, key: &Path, certificate: &Path, names: &BTreeSet<String>, now: TimeMs) -> bool {
        let (Ok(key), Ok(pem)) = (read(key), read(certificate)) else { return false };
        let (Ok(key), Ok(der)) = (KeyPair::from_pem(&key), CertificateDer::from_pem_slice(pem.as_bytes())) else {
            return false;
        };
        let Ok((_, parsed)) = x509_parser::parse_x509_certificate(&der) else { return false };
        let Ok((_, ca)) = x509_parser::parse_x509_certificate(&self.certificate) else { return false };
        parsed.verify_signature(Some(ca.public_key())).is_ok()
            && parsed.public_key().subject_public_key.data.as_ref() == key.public_key_raw()
            && expiry(&der).is_ok_and(|until| until >= after(now, SERVER_RENEW_BEFORE))
            && names_of(&parsed) == *names
    }
}

/// A signing request whose signature was checked.
pub struct HostRequest(CertificateSigningRequestParams);

/// The server's certificate as the listeners use it; replaced while they run when it is renewed.
#[derive(Debug)]
pub struct ServerIdentity {
    names: BTreeSet<String>,
    current: RwLock<Arc<CertifiedKey>>,
}

impl ServerIdentity {
    pub fn new(ca: &Ca, names: BTreeSet<String>, now: TimeMs) -> Result<Self, CaError> {
        let key = ca.server_key(&names, now)?;
        Ok(Self { names, current: RwLock::new(Arc::new(key)) })
    }

    /// Makes a new certificate if the present one is close to its end.
    pub fn renew(&self, ca: &Ca, now: TimeMs) -> Result<(), CaError> {
        let key = ca.server_key(&self.names, now)?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(key);
        Ok(())
    }
}

impl ResolvesServerCert for ServerIdentity {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

fn ca_params(now: TimeMs) -> Result<CertificateParams, CaError> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "drover cluster CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    valid(&mut params, now, CA_LIFE);
    Ok(params)
}

fn server_params(names: &BTreeSet<String>, now: TimeMs) -> Result<CertificateParams, CaError> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "drover server");
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    for name in names {
        params.subject_alt_names.push(match name.parse::<IpAddr>() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => SanType::DnsName(name.as_str().try_into().map_err(|_| CaError::Name { name: name.clone() })?),
        });
    }
    valid(&mut params, now, SERVER_LIFE);
    Ok(params)
}

fn valid(params: &mut CertificateParams, now: TimeMs, life: Duration) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let now = Duration::from_millis(now.0);
    params.not_before = epoch + now.saturating_sub(CLOCK_SKEW);
    params.not_after = epoch + now + life;
}

/// Seconds since 1970 at which the certificate ends.
fn expiry(certificate: &CertificateDer<'_>) -> Result<u64, String> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).map_err(|error| error.to_string())?;
    u64::try_from(parsed.validity().not_after.timestamp()).map_err(|error| error.to_string())
}

fn after(now: TimeMs, span: Duration) -> u64 {
    now.0 / 1000 + span.as_secs()
}

fn names_of(certificate: &x509_parser::certificate::X509Certificate<'_>) -> BTreeSet<String> {
    use x509_parser::extensions::GeneralName;
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return BTreeSet::new() };
    names
        .value
        .general_names
        .iter()
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            GeneralName::IPAddress(bytes) => match bytes.len() {
                4 => <[u8; 4]>::try_from(*bytes).ok().map(|b| IpAddr::from(b).to_string()),
                16 => <[u8; 16]>::try_from(*bytes).ok().map(|b| IpAddr::from(b).to_string()),
                _ => None,
            },
            _ => None,
        })
        .collect()
}

/// The common name of a certificate that the TLS layer has verified.
pub fn common_name(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let name = parsed.subject().iter_common_name().next()?.as_str().ok()?;
    Some(name.to_owned())
}

fn read(path: &Path) -> Result<String, CaError> {
    std::fs::read_to_string(path).map_err(|source| CaError::Read { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    const NOW: TimeMs = TimeMs(1_790_000_000_000);

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn request(common_name: &str) -> String {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap()
    }

    #[test]
    fn the_ca_stays_the_same_and_its_key_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let first = Ca::open(dir.path(), NOW).unwrap().fingerprint();
        assert_eq!(Ca::open(dir.path(), NOW).unwrap().fingerprint(), first);
        let mode = std::fs::metadata(dir.path().join("ca.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_host_gets_its_own_name_whatever_it_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::open(dir.path(), NOW).unwrap();
        let request = ca.read_request(&request("h9")).unwrap();
        let pem = ca.issue_host(&"h1".parse().unwrap(), &request, NOW).unwrap();
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        assert_eq!(common_name(&der).as_deref(), Some("h1"));
        let (_, parsed) = x509_parser::parse_x509_certificate(&der).unwrap();
        assert!(!parsed.is_ca());
        let (_, issuer) = x509_parser::parse_x509_certificate(ca.der()).unwrap();
        parsed.verify_signature(Some(issuer.public_key())).unwrap();
    }

    #[test]
    fn a_host_may_be_both_ends_of_a_migration() {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::open(dir.path(), NOW).unwrap();
        let request = ca.read_request(&request("h1")).unwrap();
        let pem = ca.issue_host(&"h1".parse().unwrap(), &request, NOW).unwrap();
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        let (_, parsed) = x509_parser::parse_x509_certificate(&der).unwrap();
        assert_eq!(names_of(&parsed), names(&["h1"]));
        let purposes = parsed.extended_key_usage().unwrap().expect("purposes").value;
        assert!(purposes.client_auth && purposes.server_auth && !purposes.any);
        let usage = parsed.key_usage().unwrap().expect("usages").value;
        assert!(usage.digital_signature() && usage.key_encipherment() && !usage.key_cert_sign());
    }

    #[test]
    fn a_request_signed_by_another_key_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::open(dir.path(), NOW).unwrap();
        let pem = request("h1");
        let mut der = rustls::pki_types::CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).unwrap().to_vec();
        let last = der.len() - 1;
        der[last] ^= 1;
        let forged = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, der);
        let forged = format!("-----BEGIN CERTIFICATE REQUEST-----\n{forged}\n-----END CERTIFICATE REQUEST-----\n");
        assert!(matches!(ca.read_request(&forged), Err(CaError::BadRequest { .. })));
        assert!(matches!(ca.read_request("hello"), Err(CaError::BadRequest { .. })));
    }

    #[test]
    fn the_server_certificate_is_made_anew_when_names_change_or_it_nears_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::open(dir.path(), NOW).unwrap();
        let one = names(&["localhost", "127.0.0.1"]);
        let first = ca.server_key(&one, NOW).unwrap().cert[0].clone();
        assert_eq!(ca.server_key(&one, NOW).unwrap().cert[0], first);
        let two = names(&["localhost", "127.0.0.1", "drover.example", "fd00::1"]);
        let second = ca.server_key(&two, NOW).unwrap().cert[0].clone();
        assert_ne!(second, first);
        assert_eq!(ca.server_key(&two, NOW).unwrap().cert[0], second);
        let late = TimeMs(NOW.0 + 320 * 86_400_000);
        assert_ne!(ca.server_key(&two, late).unwrap().cert[0], second);
    }

    #[test]
    fn a_damaged_ca_is_said_by_name_and_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        Ca::open(dir.path(), NOW).unwrap();
        std::fs::write(dir.path().join("ca.key"), "nonsense").unwrap();
        let error = Ca::open(dir.path(), NOW).unwrap_err();
        assert!(error.to_string().contains("ca.key"), "{error}");
    }
}

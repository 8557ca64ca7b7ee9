//! TLS on the migration channels: who is let in, and who is not.

use crate::drive::{LIMITS, at_switch_over, by, committed, failed, incoming_end, listening_for, pre_copy};
use crate::support::Lab;
use drover_qemu::RunStatus;
use drover_qemu::migration::{FailureCause, Incoming, Method, NoGate, SourceGuest, Strategy, Tls};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use std::future::pending;
use std::path::PathBuf;

/// A certificate authority as the cluster's.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "test CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), certificate }
    }

    /// What QEMU reads, for one host.
    fn directory(&self, lab: &Lab, host: &str) -> PathBuf {
        let directory = lab.path(&format!("tls-{host}"));
        std::fs::create_dir(&directory).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, host);
        params.subject_alt_names = vec![SanType::DnsName(host.try_into().unwrap())];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        for (name, content) in [
            ("ca-cert.pem", &self.certificate),
            ("server-cert.pem", &certificate),
            ("client-cert.pem", &certificate),
            ("server-key.pem", &key.serialize_pem()),
            ("client-key.pem", &key.serialize_pem()),
        ] {
            std::fs::write(directory.join(name), content).unwrap();
        }
        directory
    }
}

/// Two ends that know each other.
fn ends(lab: &Lab, strategy: &Strategy) -> (Strategy, Strategy) {
    let authority = Authority::new();
    let end = |host: &str, peer: &str| Strategy {
        tls: Some(Tls { directory: authority.directory(lab, host), peer: peer.to_owned() }),
        ..strategy.clone()
    };
    (end("h1", "h2"), end("h2", "h1"))
}

/// The migration does not come about, the guest runs on, and the destination never runs it.
async fn refused(lab: &Lab, sending: &Strategy, receiving: &Strategy) {
    let (source, destination) = lab.pair().await;
    let incoming = listening_for(&destination, receiving).await;
    let copying = pre_copy(&source, &incoming, sending, LIMITS).await;
    // All of a small guest may be on its way before the refusal is heard.
    let failed = failed(match copying.run(|_| {}, NoGate, pending()).await {
        Ok(paused) => paused.commit().await.map(drop),
        Err(failed) => Err(failed),
    });
    assert!(matches!(failed.cause, FailureCause::Stream { .. }), "{failed}");
    assert_eq!(failed.guest, SourceGuest::RunsHere);
    source.assert_runs_on().await;
    // QEMU ends after a stranger, or goes on waiting for the right one.
    match destination.machine.status().await {
        Ok(status) => assert_eq!(status, RunStatus::InMigrate),
        Err(_) => assert!(incoming_end(incoming).await.unwrap_err().never_ran()),
    }
}

#[tokio::test]
async fn ends_that_know_each_other_migrate_by_every_method() {
    let several = Strategy { channels: 3, compress: true, ..Strategy::PRE_COPY };
    let methods = [Method::PreCopy, Method::PostCopy, Method::StopAndCopy].map(|method| by(method, 0));
    for strategy in methods.into_iter().chain([several]) {
        let lab = Lab::new();
        let (sending, receiving) = ends(&lab, &strategy);
        let (source, destination) = lab.pair().await;
        let incoming = listening_for(&destination, &receiving).await;
        committed(at_switch_over(&source, &incoming, &sending, LIMITS).await).await;
        incoming_end(incoming).await.expect("the guest at the destination");
        destination.assert_runs_on().await;
        source.assert_status(RunStatus::PostMigrate).await;
    }
}

#[tokio::test]
async fn a_source_that_is_not_the_expected_one_is_refused() {
    let lab = Lab::new();
    let (sending, receiving) = ends(&lab, &Strategy::PRE_COPY);
    let tls = receiving.tls.map(|tls| Tls { peer: "h3".to_owned(), ..tls });
    refused(&lab, &sending, &Strategy { tls, ..Strategy::PRE_COPY }).await;
}

#[tokio::test]
async fn a_destination_of_another_name_is_refused() {
    let lab = Lab::new();
    let (sending, receiving) = ends(&lab, &Strategy::PRE_COPY);
    let tls = sending.tls.map(|tls| Tls { peer: "h3".to_owned(), ..tls });
    refused(&lab, &Strategy { tls, ..Strategy::PRE_COPY }, &receiving).await;
}

#[tokio::test]
async fn a_stranger_of_the_right_name_is_refused() {
    let lab = Lab::new();
    let (_, receiving) = ends(&lab, &Strategy::PRE_COPY);
    let other = Lab::new();
    let (sending, _) = ends(&other, &Strategy::PRE_COPY);
    refused(&lab, &sending, &receiving).await;
}

#[tokio::test]
async fn a_source_without_tls_is_refused() {
    let lab = Lab::new();
    let (_, receiving) = ends(&lab, &Strategy::PRE_COPY);
    let (source, destination) = lab.pair().await;
    let incoming = listening_for(&destination, &receiving).await;
    let limits = drover_qemu::migration::Limits { total_max: std::time::Duration::from_secs(2), ..LIMITS };
    // All of a small guest may be on its way before the refusal is heard; nobody commits it then.
    let failed =
        match pre_copy(&source, &incoming, &Strategy::PRE_COPY, limits).await.run(|_| {}, NoGate, pending()).await {
            Ok(paused) => paused.cancel("the test".to_owned()).await,
            Err(failed) => failed,
        };
    assert_eq!(failed.guest, SourceGuest::RunsHere, "{failed}");
    source.assert_runs_on().await;
    assert!(!matches!(destination.machine.status().await, Ok(RunStatus::Running)));
}

#[tokio::test]
async fn a_directory_without_certificates_is_said_by_name() {
    let lab = Lab::new();
    let destination = lab.start("destination", true).await;
    let tls = Tls { directory: lab.path("nothing"), peer: "h1".to_owned() };
    let strategy = Strategy { tls: Some(tls), ..Strategy::PRE_COPY };
    let address = crate::drive::LOOPBACK;
    let ports = drover_qemu::migration::ListenPorts::Any;
    let error = Incoming::prepare(&destination.machine, address, ports, &strategy).await.err().expect("a refusal");
    assert!(error.to_string().contains("nothing"), "{error}");
}

//! The one seam between drover's networks and the bench: which network the vm is on, and how its clients reach it.

use super::arguments::NetworkKind;
use super::managed::TENANT;
use anyhow::{Context, Result};
use drover_api::v1::{CreateNetwork, CreatePort, TenantQuery};
use drover_lab::config::NETWORK;
use drover_lab::{Lab, net};
use drover_model::HostId;
use drover_model::network::Network;
use drover_model::network::Port;
use std::net::IpAddr;
use std::time::Duration;

/// Of the vm that drover runs on the provider network.
const VM_NUMBER: u8 = 1;
const OVERLAY: &str = "bench";
const SUBNET: &str = "10.90.0.0/24";
const VM_ADDRESS: &str = "10.90.0.10";
/// Where the clients are on the overlay network, and by what interface of their host.
const PORT_ADDRESS: &str = "10.90.0.200";
const PORT: &str = "bench-clients";
const INTERFACE: &str = "bench0";
const APPLIED_WAIT_MAX: Duration = Duration::from_secs(30);

#[derive(Debug, Clone)]
pub struct SiteNetwork {
    pub name: String,
    /// As it is asked for.
    pub vm_address: String,
    /// For people.
    pub kind: &'static str,
}

impl SiteNetwork {
    /// Makes the network if it is drover's to make, with a port for the clients on their host.
    pub async fn make(lab: &Lab, kind: NetworkKind, clients: &HostId) -> Result<Self> {
        match kind {
            NetworkKind::Provider => {
                let (_, vm_address) = net::vm_address(VM_NUMBER);
                Ok(Self { name: NETWORK.to_owned(), vm_address, kind: "provider" })
            }
            NetworkKind::Overlay => {
                Self::make_overlay(lab, clients).await.context("can't make an overlay network with a port")
            }
        }
    }

    async fn make_overlay(lab: &Lab, clients: &HostId) -> Result<Self> {
        let client = lab.cluster.client();
        let network = CreateNetwork {
            name: OVERLAY.parse()?,
            tenant: Some(TENANT.parse()?),
            subnet: SUBNET.parse()?,
            router: None,
            dns: Vec::new(),
            mtu: None,
            labels: Default::default(),
        };
        client.of::<Network>().create(&network).await?;
        let port = CreatePort {
            name: PORT.parse()?,
            network: OVERLAY.to_owned(),
            tenant: Some(TENANT.parse()?),
            host: clients.clone(),
            interface: INTERFACE.to_owned(),
            mac: None,
            address: Some(PORT_ADDRESS.parse()?),
            labels: Default::default(),
        };
        client.of::<Port>().create(&port).await?;
        let whose = TenantQuery { tenant: Some(TENANT.to_owned()) };
        lab.cluster
            .wait_for("the clients' host has its port", APPLIED_WAIT_MAX, async || {
                let view = client.of::<Network>().within(whose.tenant.as_deref()).get(OVERLAY).await?;
                let host = view.hosts.into_iter().flatten().find(|host| host.host == *clients);
                Ok(host.filter(|host| host.applied).map(drop))
            })
            .await?;
        Ok(Self { name: OVERLAY.to_owned(), vm_address: VM_ADDRESS.to_owned(), kind: "overlay" })
    }

    pub fn vm(&self) -> Result<IpAddr> {
        let address = self.vm_address.split('/').next().unwrap_or_default();
        address.parse().with_context(|| format!("{} is no address", self.vm_address))
    }
}

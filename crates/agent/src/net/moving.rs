//! What a vm's task asks for while the vm moves. Each is a few requests to the kernel, made in this process: a guest
//! may stand still meanwhile.

use super::kernel::{self, Filter, Side};
use super::names::{Mac, tap_name};
use super::packet::{self, PacketSocket};
use super::state::{self, Presence, State};
use super::{Current, Net, NetError, REDIRECT, paths};
use crate::clock::now_ms;
use crate::error_chain::chain;
use drover_model::{Millis, VmId};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::MutexGuard;

impl Net {
    /// From now on every frame that this host delivers to the vm also goes to the host with this tunnel end point.
    pub async fn open_relay(&self, vm: &VmId, vtep: IpAddr) -> Result<(), NetError> {
        let mut current = self.inner.current.lock().await;
        let overlay = |state: &State| state.cards.get(vm).is_some_and(|card| state.overlay(&card.network).is_some());
        if !overlay(&current.state) {
            return Err(NetError::NotOverlay(vm.clone()));
        }
        // Another one's end is an entry that is replaced: nothing is sent twice or not at all.
        self.change(&mut current, vm, |card| card.relay = Some(vtep)).await
    }

    pub async fn close_relay(&self, vm: &VmId) -> Result<(), NetError> {
        let mut current = self.inner.current.lock().await;
        self.change(&mut current, vm, |card| card.relay = None).await?;
        drop(current);
        let links = self.links().await?;
        // Where the server says that it is, again.
        self.settle(&links).await
    }

    /// Nothing that the tap sends leaves it any more. With a relay, what is for the vm now goes to its new host alone.
    pub async fn fence(&self, vm: &VmId) -> Result<(), NetError> {
        let mut current = self.inner.current.lock().await;
        if current.state.cards.contains_key(vm) {
            return self.change(&mut current, vm, |card| card.fenced = true).await;
        }
        if let Some(tap) = self.inner.kernel.find(&tap_name(vm)).await? {
            self.inner.kernel.make_filterable(tap).await?;
            self.inner.kernel.add_filter(tap, Side::Ingress, paths::FENCE, &Filter::Drop).await?;
        }
        Ok(())
    }

    /// The vm runs here again.
    pub async fn unfence(&self, vm: &VmId) -> Result<(), NetError> {
        let mut current = self.inner.current.lock().await;
        if current.state.cards.contains_key(vm) {
            return self.change(&mut current, vm, |card| card.fenced = false).await;
        }
        if let Some(tap) = self.inner.kernel.find(&tap_name(vm)).await? {
            self.inner.kernel.remove_filter(tap, Side::Ingress, paths::FENCE).await?;
        }
        Ok(())
    }

    /// The vm has moved: what arrives for it here is sent after it for [`REDIRECT`]. To be called before its tap goes.
    pub async fn release(&self, vm: &VmId) -> Result<(), NetError> {
        let mut current = self.inner.current.lock().await;
        let until = now_ms().plus(Millis(REDIRECT.as_millis() as u64));
        self.change(&mut current, vm, |card| {
            card.fenced = true;
            card.redirect_until = Some(until);
        })
        .await?;
        drop(current);
        self.forget_later();
        Ok(())
    }

    /// The guest that was waited for runs here.
    pub async fn arrived(&self, vm: &VmId) -> Result<(), NetError> {
        let mut slow = self.inner.slow.lock().await;
        let arrive = |card: &mut state::Card| card.presence = Presence::Arrived { at: now_ms(), noted: false };
        let mut state = self.inner.current.lock().await.state.clone();
        let Some(card) = state.cards.get_mut(vm).filter(|card| card.presence == Presence::Incoming) else {
            return Ok(());
        };
        arrive(card);
        // Rules first: what was sent on to another host's perimeter until now meets this one from here on. And the time
        // is counted in which its connections may go on without being known.
        let rules = self.load_rules(&mut slow, &state).await;
        self.change(&mut self.inner.current.lock().await, vm, arrive).await?;
        rules
    }

    /// Tells the switches of a provider network that the vm is to be found here from now on. An overlay's hosts are
    /// told by the server.
    pub async fn announce(&self, vm: &VmId) -> Result<(), NetError> {
        let (bridge, mac, address) = {
            let mut current = self.inner.current.lock().await;
            let Some(card) = current.state.cards.get(vm) else { return Ok(()) };
            let Some(bridge) = self.inner.config.providers.get(&card.network).cloned() else { return Ok(()) };
            let mac: Mac = card.mac.parse().map_err(|error| NetError::BadNetwork { what: format!("{vm}: {error}") })?;
            let address = current.state.port_of(vm).and_then(|port| port.address).map(|subnet| subnet.address);
            if current.state.cards.get(vm).is_some_and(|card| card.presence == Presence::Incoming) {
                self.change(&mut current, vm, |card| card.presence = Presence::Arrived { at: now_ms(), noted: false })
                    .await?;
            }
            (bridge, mac, address)
        };
        let device = self.inner.kernel.index(&tap_name(vm)).await?;
        let entry = kernel::Entry { device, mac: mac.0, to: kernel::Forward::Port };
        self.inner.kernel.set_entry(entry).await?;
        let failed = |source| NetError::Packet { what: "announce a vm", interface: bridge.clone(), source };
        let socket = PacketSocket::open(&bridge, &packet::nothing()).map_err(failed)?;
        socket.send(&packet::rarp(mac)).map_err(failed)?;
        if let Some(address) = address {
            socket.send(&packet::gratuitous_arp(mac, address)).map_err(failed)?;
        }
        Ok(())
    }

    /// Changes a vm's card, and where its frames go. It is written down once that stands: an agent that dies between
    /// is told again.
    async fn change(
        &self,
        current: &mut MutexGuard<'_, Current>,
        vm: &VmId,
        change: impl FnOnce(&mut state::Card),
    ) -> Result<(), NetError> {
        let Current { state, led } = &mut **current;
        let Some(card) = state.cards.get_mut(vm) else { return Ok(()) };
        change(card);
        paths::lead_vm(&self.inner.kernel, state, led, vm).await?;
        state.store(&self.inner.config.state_file)
    }

    /// Ends redirections whose time has passed, once that is so.
    pub(super) fn forget_later(&self) {
        let inner = Arc::downgrade(&self.inner);
        tokio::spawn(async move {
            tokio::time::sleep(REDIRECT + Duration::from_millis(100)).await;
            let Some(inner) = inner.upgrade() else { return };
            let net = Self { inner };
            let mut slow = net.inner.slow.lock().await;
            if let Err(error) = net.apply_desired(&mut slow).await {
                tracing::warn!(error = chain(&error), "what was left of a vm's network could not be removed");
            }
        });
    }

    pub(super) async fn drop_expired(&self) -> Result<(), NetError> {
        let now = now_ms();
        let mut current = self.inner.current.lock().await;
        let mut gone = Vec::new();
        for (vm, card) in &current.state.cards {
            let over = card.redirect_until.is_some_and(|until| until <= now);
            if over && self.inner.kernel.find(&tap_name(vm)).await?.is_none() {
                gone.push(vm.clone());
            }
        }
        for vm in gone {
            current.state.cards.remove(&vm);
            current.led.remove(&vm);
        }
        Ok(())
    }
}

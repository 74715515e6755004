//! Two interfaces made one: what comes in on one goes out of the other, whatever it is. With
//! `u32` and `mirred`, which every kernel has that has traffic control at all.

use rtnetlink::{Error, Handle};

use super::{NetworkError, netlink};

/// The ingress qdisc's handle, `ffff:`.
const INGRESS: u32 = 0xffff_0000;

/// Joins two interfaces, or leaves both alone.
pub async fn join(handle: &Handle, one: u32, other: u32) -> Result<(), NetworkError> {
    for (from, to) in [(one, other), (other, one)] {
        if let Err(error) = redirect(handle, from, to).await {
            part(handle, one).await;
            part(handle, other).await;
            return Err(error);
        }
    }
    Ok(())
}

async fn redirect(handle: &Handle, from: u32, to: u32) -> Result<(), NetworkError> {
    let failed = || {
        netlink("redirect traffic to the VM (traffic control's ingress, u32 and mirred are needed)")
    };
    let index = number(from)?;
    handle
        .qdisc()
        .add(index)
        .ingress()
        .execute()
        .await
        .map_err(failed())?;
    let every_protocol = u16::try_from(libc::ETH_P_ALL).unwrap_or(3).to_be();
    handle
        .traffic_filter(index)
        .add()
        .parent(INGRESS)
        .priority(1)
        .protocol(every_protocol)
        .redirect(to)
        .map_err(failed())?
        .execute()
        .await
        .map_err(failed())
}

/// Undoes what [`join`] did to one of the two; nothing when it is gone.
pub async fn part(handle: &Handle, interface: u32) {
    let Ok(index) = number(interface) else { return };
    let mut request = handle.qdisc().del(index);
    request.message_mut().header.parent = rtnetlink::packet_route::tc::TcHandle::INGRESS;
    match request.execute().await {
        Ok(()) => {}
        Err(Error::NetlinkError(message))
            if matches!(
                -message.raw_code(),
                libc::ENODEV | libc::ENOENT | libc::EINVAL
            ) => {}
        Err(error) => tracing::warn!(%error, interface, "an interface stays redirected"),
    }
}

fn number(interface: u32) -> Result<i32, NetworkError> {
    i32::try_from(interface).map_err(|_| NetworkError::System {
        doing: format!("address the interface {interface}"),
        source: std::io::ErrorKind::InvalidInput.into(),
    })
}

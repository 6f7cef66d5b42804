"""The `restricted` Pod Security Standard, rule by rule, as an API server enforces it.

https://kubernetes.io/docs/concepts/security/pod-security-standards/ - baseline and restricted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

ALLOWED_VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "image", "persistentVolumeClaim",
    "projected", "secret",
}  # fmt: skip
SAFE_SYSCTLS = {
    "kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.tcp_syncookies", "net.ipv4.ping_group_range", "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time", "net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes", "net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem",
}  # fmt: skip
SECCOMP_TYPES = {"RuntimeDefault", "Localhost"}
SELINUX_TYPES = {
    None,
    "",
    "container_t",
    "container_init_t",
    "container_kvm_t",
    "container_engine_t",
}
APPARMOR_TYPES = {"RuntimeDefault", "Localhost"}

Object = Mapping[str, Any]


def restricted_violations(pod_spec: Object) -> list[str]:
    """Return what the standard refuses in a pod spec."""
    return [*_pod_violations(pod_spec), *_container_violations(pod_spec)]


def _pod_violations(spec: Object) -> Iterator[str]:
    for name in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(name):
            yield name
    for volume in spec.get("volumes", ()):
        kinds = set(volume) - {"name"}
        if not kinds <= ALLOWED_VOLUMES:
            yield f"volume {volume['name']} is a {', '.join(kinds)}"
    security = spec.get("securityContext", {})
    if security.get("runAsUser") == 0:
        yield "the pod runs as user 0"
    for sysctl in security.get("sysctls", ()):
        if sysctl["name"] not in SAFE_SYSCTLS:
            yield f"sysctl {sysctl['name']}"
    if "windowsOptions" in security and security["windowsOptions"].get("hostProcess"):
        yield "the pod is a host process"
    yield from _option_violations("the pod", security)


def _container_violations(spec: Object) -> Iterator[str]:
    pod = spec.get("securityContext", {})
    for kind in ("initContainers", "containers", "ephemeralContainers"):
        for container in spec.get(kind, ()):
            name, own = container["name"], container.get("securityContext", {})
            yield from _option_violations(name, own)
            if own.get("privileged"):
                yield f"{name} is privileged"
            if own.get("allowPrivilegeEscalation") is not False:
                yield f"{name} may gain privileges"
            capabilities = own.get("capabilities", {})
            if "ALL" not in capabilities.get("drop", ()):
                yield f"{name} keeps capabilities"
            if set(capabilities.get("add", ())) - {"NET_BIND_SERVICE"}:
                yield f"{name} adds capabilities"
            if not own.get("runAsNonRoot", pod.get("runAsNonRoot")):
                yield f"{name} may run as root"
            if own.get("runAsUser") == 0:
                yield f"{name} runs as user 0"
            profile = own.get("seccompProfile", pod.get("seccompProfile", {}))
            if profile.get("type") not in SECCOMP_TYPES:
                yield f"{name} has no seccomp profile"
            if own.get("procMount", "Default") != "Default":
                yield f"{name} has another /proc"
            if any(port.get("hostPort") for port in container.get("ports", ())):
                yield f"{name} takes a port of the host"


def _option_violations(name: str, security: Object) -> Iterator[str]:
    selinux = security.get("seLinuxOptions", {})
    if selinux.get("type") not in SELINUX_TYPES or selinux.get("user") or selinux.get("role"):
        yield f"{name} has SELinux options"
    profile = security.get("appArmorProfile", {"type": "RuntimeDefault"})
    if profile["type"] not in APPARMOR_TYPES:
        yield f"{name} has no AppArmor profile"

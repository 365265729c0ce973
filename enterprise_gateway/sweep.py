"""``jupyter enterprisegateway-sweep``: report, and remove on request, what gateways have left behind."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from traitlets import Bool

from .core.errors import StoreUnavailableError
from .enterprisegatewayapp import EnterpriseGatewayApp
from .services.kernels.sweeper import SweepReport


class EnterpriseGatewaySweepApp(EnterpriseGatewayApp):
    """Sweeps with the configuration of the gateway, whether that one runs or not."""

    name = "jupyter-enterprisegateway-sweep"
    # The configuration of the gateway itself applies.
    config_file_name = "jupyter_enterprise_gateway_config"
    description = """
        Jupyter Enterprise Gateway: sweep

        Finds processes and files that carry the label of this deployment (EG_DEPLOYMENT_ID) and belong to no kernel on
        record, on this machine and on the back ends of the installed kernelspecs, and removes them. What another
        deployment or anybody else has made is never touched.
    """
    examples = """
        jupyter enterprisegateway-sweep --dry-run
        jupyter enterprisegateway-sweep --EnterpriseGatewayApp.availability_mode=standalone
    """
    flags: dict[str, Any] = {
        **EnterpriseGatewayApp.flags,
        "dry-run": ({"EnterpriseGatewaySweepApp": {"dry_run": True}}, "Only report what would be removed."),
    }

    dry_run = Bool(False, config=True, help="Whether what is found is only reported.")

    def init_webapp(self) -> None:
        """Serve nothing."""

    def init_http_server(self) -> None:
        """Listen nowhere."""

    def start(self) -> None:
        """Sweep once; the exit status is 1 when something could not be asked or removed."""
        try:
            report = asyncio.run(self._sweep())
        except StoreUnavailableError as error:
            sys.exit(f"Nothing was removed: {error}")
        print("\n".join(lines_of(report, self.dry_run)))  # noqa: T201 -- a command's output
        if report.failed or report.not_asked:
            sys.exit(1)

    async def _sweep(self) -> SweepReport:
        try:
            return await self.sweeper.sweep(dry_run=self.dry_run)
        finally:
            await self.stop_managers()


def lines_of(report: SweepReport, dry_run: bool) -> list[str]:
    """Return what is told on the terminal."""
    done = "would be removed" if dry_run else "removed"
    lines = [
        f"kernel {thing.kernel_id}: {thing.what}: {report.failed.get(thing.what) or done}" for thing in report.found
    ]
    lines += [f"{back_end} could not be asked: {reason}" for back_end, reason in report.not_asked.items()]
    return [*lines, f"{len(report.found)} left behind, {report.kept} in use by kernels."]


main = launch_instance = EnterpriseGatewaySweepApp.launch_instance

if __name__ == "__main__":
    main()

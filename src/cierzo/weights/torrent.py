"""Torrents and magnet links, by libtorrent (the extra `torrent`): every piece is checked against the info-hash."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cierzo.errors import CierzoError, WeightsError
from cierzo.weights.download import FetchError
from cierzo.weights.store import check_space

if TYPE_CHECKING:
    import libtorrent

PATIENCE = 120.0
"""Seconds without a byte before it is an error."""


def fetch_torrent(link: str, folder: Path, report: Callable[[int, int], None]) -> Path:
    """Bring a torrent's files into `folder`, going on from what is there; returns the folder or file that it holds.

    `link` is a magnet link or the path of a .torrent file; `report` hears bytes done and bytes in all.

    Raises:
        FetchError: no peers, or a link that is none.
        WeightsError: the files cannot be written.
    """
    try:
        import libtorrent as lt
    except ImportError as error:
        raise CierzoError("torrents need libtorrent: pip install 'cierzo[torrent]'") from error
    try:
        params = lt.parse_magnet_uri(link) if link.startswith("magnet:") else lt.load_torrent_file(link)
        params.save_path = str(folder)
        session: Any = lt.session({"alert_mask": lt.alert.category_t.error_notification, "user_agent": "cierzo"})
        handle = session.add_torrent(params)
    except RuntimeError as error:
        raise FetchError(f"{link}: not a torrent ({error})") from error
    try:
        return _Fetch(session, handle, link, folder, report).run()
    finally:
        session.pause()


class _Fetch:
    def __init__(
        self, session: Any, handle: "libtorrent.torrent_handle", link: str, folder: Path,
        report: Callable[[int, int], None],
    ) -> None:  # fmt: skip
        self.session, self.handle, self.link, self.folder, self.report = session, handle, link, folder, report

    def run(self) -> Path:
        import libtorrent as lt

        last, moved, sized = -1, time.monotonic(), False
        while True:
            for alert in self.session.pop_alerts():
                if isinstance(alert, lt.file_error_alert):
                    raise WeightsError(
                        f"cannot write {alert.filename()}: {alert.error.message()}: make room, and run it again: it "
                        "goes on from there"
                    )
            status = self.handle.status()
            checking = status.state in (lt.torrent_status.checking_files, lt.torrent_status.checking_resume_data)
            if status.has_metadata and not sized and not checking:
                sized = True
                check_space(self.folder, status.total_wanted - status.total_wanted_done, f"the torrent {status.name}")
            if status.has_metadata and status.is_finished:
                break
            if status.total_wanted_done + int(status.progress_ppm) != last:
                last, moved = status.total_wanted_done + int(status.progress_ppm), time.monotonic()
            if time.monotonic() - moved > PATIENCE:
                what = "bytes" if status.has_metadata else "description"
                raise FetchError(
                    f"no {what} of {status.name or self.link} from {status.num_peers} peers for {PATIENCE:.0f} s: run "
                    "it again later (it goes on from there), or take another source"
                )
            if status.total_wanted:
                self.report(status.total_wanted_done, status.total_wanted)
            time.sleep(0.2)
        self.report(status.total_wanted, status.total_wanted)
        info: Any = self.handle.torrent_file()
        root = Path(info.layout().file_path(0)).parts[0]
        self.session.remove_torrent(self.handle)  # closes the files
        return self.folder / root

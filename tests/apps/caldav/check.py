"""A calendar, an event, a search: MKCALENDAR, PUT, REPORT, DELETE, with the library caldav."""
import os
from datetime import datetime

import caldav

from lib import URL, check, sleep_app

name = f"c-{os.environ['SCHEME']}-{os.environ['STATE']}"
dav = caldav.DAVClient(f"{URL}/", username="u", password="p", ssl_verify_cert=os.environ["CA"] or True)
calendar = dav.principal().make_calendar(name=name, cal_id=name)
sleep_app()
calendar.save_event(dtstart=datetime(2026, 12, 1, 8), dtend=datetime(2026, 12, 1, 9), summary="Breakfast")
sleep_app()
found = calendar.search(start=datetime(2026, 12, 1), end=datetime(2026, 12, 2), event=True)
check("an event is found", len(found) == 1 and "Breakfast" in found[0].data, found)
found[0].delete()
check("and deleted", calendar.search(start=datetime(2026, 12, 1), end=datetime(2026, 12, 2), event=True) == [])
calendar.delete()

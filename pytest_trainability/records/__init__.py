"""Plain numbers and strings: what is measured, judged, stored and shown."""

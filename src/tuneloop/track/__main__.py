"""The follower process: `python -m tuneloop.track`, settings on stdin."""

from tuneloop.track.follow import main

raise SystemExit(main())

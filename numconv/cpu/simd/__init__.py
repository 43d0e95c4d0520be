"""The vector room: register tiles and the moves around them. Everything else in numconv is loops around these.

``tile`` multiplies matrices, ``panels`` brings them to it and away, ``window`` multiplies images by small kernels,
``winograd`` transforms tiles of them, ``rows`` copies pixels. For float32 and float64 they are written for the host's
vectors; every other dtype runs the same sums as plain loops, which are also what Python sees when compilation is off.
"""

from .panels import ALIGNED as ALIGNED
from .panels import aligned as aligned
from .panels import copy_every_second as copy_every_second
from .panels import copy_run as copy_run
from .panels import pack as pack
from .panels import put as put
from .panels import put_apart as put_apart
from .panels import transpose as transpose
from .rows import copy_item as copy_item
from .rows import copy_rows as copy_rows
from .rows import spread_rows as spread_rows
from .tile import HIGHEST as HIGHEST
from .tile import SUMS as SUMS
from .tile import WIDEST as WIDEST
from .tile import WIDTHS as WIDTHS
from .tile import multiply_add as multiply_add
from .tile import outer_sum as outer_sum
from .tile import sum_lanes as sum_lanes
from .vectors import address as address
from .vectors import borrowed as borrowed
from .vectors import keep as keep
from .vectors import lanes as lanes
from .window import ABREAST as ABREAST
from .window import CHAIN as CHAIN
from .window import ENTRY as ENTRY
from .window import IMAGE as IMAGE
from .window import MASKED as MASKED
from .window import NO_PIXELS as NO_PIXELS
from .window import STACKED as STACKED
from .window import WINDOW as WINDOW
from .window import weight_sums as weight_sums
from .window import window_sum as window_sum
from .winograd import ROWS as ROWS
from .winograd import by_kind as by_kind
from .winograd import largest_of_rows as largest_of_rows
from .winograd import panel_sum as panel_sum
from .winograd import panel_width as panel_width
from .winograd import sandwich as sandwich
from .winograd import sandwich_of_rows as sandwich_of_rows
from .winograd import to_lanes as to_lanes
from .winograd import turn as turn

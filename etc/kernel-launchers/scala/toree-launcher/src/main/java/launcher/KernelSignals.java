package launcher;

import java.util.Map;
import java.util.Set;
import sun.misc.Signal;
import sun.misc.SignalHandler;

/** Turns the signal numbers that the gateway sends into signals that this JVM can handle. */
final class KernelSignals {
    private static final System.Logger LOG = System.getLogger("launcher");
    private static final int INTERRUPT = 2;
    private static final int KILL = 9;
    private static final int TERMINATE = 15;
    private static final Map<String, Integer> ALTERNATES = Map.of("USR1", 10, "USR2", 12);
    private static final long TERMINATION_MILLIS = 5000;

    private final String interrupt;
    private final Set<Integer> allowed;
    private final Runnable cleanUp;
    private final ClassLoader classLoader = Thread.currentThread().getContextClassLoader();
    private final SignalHandler lender = this::handleWithClassLoader;
    private volatile SignalHandler handler;

    /**
     * Creates the signals of one kernel.
     *
     * @param alternateSigint name of the signal that interrupts instead of INT; empty for INT
     * @param cleanUp what to do before the JVM is halted, as halting skips its shutdown hooks
     */
    KernelSignals(String alternateSigint, Runnable cleanUp) {
        this.interrupt = alternateSigint.isEmpty() ? "INT" : alternateSigint;
        this.allowed = alternateSigint.isEmpty()
                ? Set.of(INTERRUPT, KILL, TERMINATE)
                : Set.of(INTERRUPT, KILL, TERMINATE, ALTERNATES.getOrDefault(alternateSigint, INTERRUPT + 100));
        this.cleanUp = cleanUp;
        if (alternateSigint.isEmpty()) {
            LOG.log(
                    System.Logger.Level.WARNING,
                    "No --alternate-sigint: interrupts use SIGINT, which a JVM started in the background ignores");
        } else {
            // Until Toree installs its own handler, an early interrupt would end the JVM.
            Signal.handle(new Signal(interrupt), signal -> {});
        }
    }

    /** Delivers a signal; returns whether the gateway may send it. 0 only checks that the kernel is alive. */
    boolean deliver(int number) {
        if (number == 0) {
            return true;
        }
        if (!allowed.contains(number)) {
            return false;
        }
        if (number == KILL) {
            haltLater();
        }
        if (number == KILL || number == TERMINATE) {
            Signal.raise(new Signal("TERM"));
        } else {
            Signal signal = new Signal(interrupt);
            lendClassLoader(signal);
            Signal.raise(signal);
        }
        return true;
    }

    /**
     * Runs the present handler of {@code signal} with the class loader of this launcher.
     *
     * <p>Toree's handler asks for the Spark context, and makes it where no cell has yet; the JVM's threads for signals
     * have a class loader that does not know Spark.
     */
    private synchronized void lendClassLoader(Signal signal) {
        SignalHandler current = Signal.handle(signal, lender);
        if (current == SignalHandler.SIG_DFL || current == SignalHandler.SIG_IGN) {
            Signal.handle(signal, current); // the system's, which cannot be called
        } else if (current != lender) {
            handler = current;
        }
    }

    private void handleWithClassLoader(Signal signal) {
        Thread.currentThread().setContextClassLoader(classLoader);
        handler.handle(signal);
    }

    /** TERM lets Spark stop its executors; a JVM that does not end after it is halted. */
    private void haltLater() {
        Thread watchdog = new Thread(
                () -> {
                    try {
                        Thread.sleep(TERMINATION_MILLIS);
                    } catch (InterruptedException e) {
                        Thread.currentThread().interrupt();
                    }
                    cleanUp.run();
                    Runtime.getRuntime().halt(128 + KILL);
                },
                "launcher-halt");
        watchdog.setDaemon(true);
        watchdog.start();
    }
}
